// What the integer products say of rows: logits, bounds on distances, and what a screen drops.
#pragma once

#include <cmath>
#include <cstdint>

#include "query_rules.h"

namespace diffgen::u8 {

// How products become bounds on distances.
struct BoundTerms {
    int64_t correction;     // taken from the products
    double square;          // |x_p|^2
    double norm_factor;     // alpha^2
    double product_factor;  // 2 alpha scale, in units of the product
    double rounding;        // of the squared distance
    double lost;            // |x - x_p|
};

struct Bound {
    double distance;  // squared, to x_p
    double near;      // lower bound of the squared one to x
};

namespace {

// Roundings of an expanded squared distance, relative to (|x| + alpha |row|)^2: of its assembly,
// and for each feature of |x_p|^2.
constexpr double kExpandedRounding = 0x1p-49;
constexpr double kSquareRounding = 0x1p-56;
// When logits are compared with bounds on their true values, in nats: twice what the query's digits
// may take of each, and the rounding of either, relative to the largest and for each feature.
constexpr double kCompareSlack = 1.6e-5;
constexpr double kCompareRounding = 0x1p-46;
constexpr double kSumRounding = 0x1p-58;
// Squared distances closer than this, relatively, are the same at sigma = 0, and those under this
// share of the squared lengths are nothing.
constexpr double kTie = 1e-12;
constexpr double kCoincident = 0x1p-98;

DIFFGEN_HD inline BoundTerms bound_terms(const Point& point, int planes, const Rows& rows) {
    const double reach = reach_of(point, rows.longest);
    const double rounding =
        kExpandedRounding + kSquareRounding * static_cast<double>(rows.features);
    return {point.correction[planes - 1], point.squares[planes - 1],
            point.alpha * point.alpha,    2.0 * point.row_scale * point.step[planes - 1],
            rounding * reach * reach,     point.lost[planes - 1]};
}

DIFFGEN_HD inline Bound bound_of(const BoundTerms& t, int64_t product, double norm) {
    const double distance = (t.square + t.norm_factor * norm) -
                            t.product_factor * static_cast<double>(product - t.correction);
    double least = distance - t.rounding;
    least = least < 0.0 ? 0.0 : least;
    double length = sqrt(least) - t.lost;
    length = length < 0.0 ? 0.0 : length;
    return {distance, length * length};
}

// An upper bound of the squared distance to x of a row at this one to x_p.
DIFFGEN_HD inline double far_square(const BoundTerms& t, double distance) {
    const double far = sqrt(larger(0.0, distance) + 2.0 * t.rounding) + t.lost;
    return far * far;
}

DIFFGEN_HD inline double logit_of(int64_t product, double norm, double log_weight,
                                  int64_t correction, double norm_factor, double product_factor) {
    const double exact = static_cast<double>(product - correction);
    return log_weight - (norm_factor * norm - product_factor * exact);
}

// Rows of a tile whose upper bound is under this are out: `seeming` is the largest logit by the
// distance to x_p, of a row of weight `log_weight`.
struct Floor {
    double slack;   // of comparing bounds with logits
    double lowest;  // logits of the tile that can count
};

DIFFGEN_HD inline Floor floor_of(const Query& query, const BoundTerms& terms, int64_t features,
                                 double seeming, double log_weight) {
    const double rounding = kCompareRounding + kSumRounding * static_cast<double>(features);
    const double slack = kCompareSlack + rounding * (fabs(seeming) + fabs(query.constant));
    const double distance = (log_weight + query.constant - seeming) / query.kappa;
    const double lower = log_weight + query.constant - query.kappa * far_square(terms, distance);
    return {slack, lower - query.cut - slack - rounding * fabs(lower)};
}

}  // namespace

}  // namespace diffgen::u8
