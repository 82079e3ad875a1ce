// What a query is to the integer engine: its fixed point, the bounds that decide how many digits
// are used, and what may be dropped.
//
// With x the query less alpha times the origin, V = rint(unit x) and V_p its first p digits, a
// product V_p . (row - 128) is exact; what it says of the query itself is off by no more than
// `lost[p - 1]` = |x - x_p| allows. Derived in docs/numerics-integers.md.
#pragma once

#include <cmath>
#include <cstdint>

#include "../fixed_math.h"
#include "layout.h"

namespace diffgen::u8 {

// What several queries may share: a noisy point and its signal scale.
struct Point {
    const double* x = nullptr;  // query - alpha origin, (features,)
    const int8_t* digits[kQueryDigits] = {};
    double alpha = 1.0;
    double row_scale = 1.0;  // alpha times the size of a stored unit
    double square = 0.0;     // |x|^2
    bool finite = true;
    // Of the first p digits, at p - 1:
    int64_t correction[kQueryDigits] = {};  // product of the digits with 128
    double step[kQueryDigits] = {};         // size of a unit of the product's fixed point
    double lost[kQueryDigits] = {};         // bound on |x - x_p|
    double squares[kQueryDigits] = {};      // |x_p|^2
};

struct Query {
    int64_t point = 0;
    double kappa = 0.0;           // 1 / (2 sigma^2); 1 for sigma = 0
    double norm_factor = 0.0;     // kappa alpha^2
    double product_factor = 0.0;  // of a product of all `digits`
    double constant = 0.0;        // kappa |x|^2, or that of the anchor: left out of the logits
    double margin = 0.0;          // tiles and segments so far below another, in nats, are dropped
    double cut = 0.0;             // rows so far below the best of their tile, in nats, are dropped
    double weight_tolerance = 0.0;
    int64_t exclude = -1;
    int digits = kQueryDigits;        // that decide the logits
    bool by_differences = false;      // the logits are decided by float64 differences instead,
    const uint8_t* anchor = nullptr;  // from this row, a nearest one
    bool sigma_is_zero = false;
    bool finite = true;  // and its sigma, alpha and exclude are ones that there can be
};

// What a call asks beyond a float32 mean.
struct Demands {
    bool functionals = false;
    bool score = false;  // the mean is divided by sigma: it must be that much more precise
};

// Sums over features that a query's digits leave: those of p digits at p - 1.
struct Split {
    int64_t digit_sums[kQueryDigits];  // of the digits of that place
    double lost[kQueryDigits];         // squared length of what the first p digits leave out
    double squares[kQueryDigits];      // squared length of what they stand for
    double square;                     // squared length of the query
};

// The rows that a query is compared with.
struct Rows {
    int64_t features = 0;
    int64_t count = 0;     // of the set
    int64_t eligible = 0;  // of them
    double longest = 0.0;  // |row - origin| at most
};

namespace {

// Of the 1e-5 promised for the mean: what the query's fixed point may take, and the weights'. The
// dropped rows take the rest.
constexpr double kQueryTolerance = 7e-6;
constexpr double kWeightTolerance = 2e-6;
// Rows of a tile that many nats below its best are dropped: the first where the mean alone is
// asked, the second where less than a unit of the log-sum-exp's weights is left of them.
constexpr double kCut = 22.5;
constexpr double kFineCut = 33.0;
// Tiles and segments that many nats and the logarithm of the count below another are dropped.
constexpr double kMargin = 17.0;
constexpr double kFunctionalsMargin = 24.0;
// From here on sigma counts as zero: kappa times a squared distance would leave the range.
constexpr double kSteepest = 1e250;
// Largest magnitudes under this are zero: their unit would leave the range.
constexpr double kNothing = 1e-250;
// What float64 rounds on the way from a query to its logits, as a length relative to those of x, of
// its move to the origin and of the rows; and slack for the rounding of |x - x_p| itself.
constexpr double kRounding = 0x1p-50;
constexpr double kSlack = 1.0 + 0x1p-20;

DIFFGEN_HD inline double larger(double a, double b) {
    return a < b ? b : a;
}

DIFFGEN_HD inline double smaller(double a, double b) {
    return b < a ? b : a;
}

// Digits whose products with rows, and those times 256, stay within an int64.
DIFFGEN_HD inline int most_digits(int64_t features) {
    int digits = kQueryDigits;
    while (digits > kFewestDigits &&
           ldexp(static_cast<double>(features), 8 * digits + 8) > 0x1p62) {
        --digits;
    }
    return digits;
}

// Units of the fixed point in 1, for queries of this largest magnitude.
DIFFGEN_HD inline double unit_of(double largest) {
    return largest > kNothing ? kTopDigit * 0x1p32 / largest : 1.0;
}

DIFFGEN_HD inline double reach_of(const Point& point, double longest) {
    return sqrt(point.square) + point.alpha * longest;
}

// Puts what the split of a finite point leaves into it. `shift` is alpha times the origin.
DIFFGEN_HD inline void measure(const Split& split, double unit, double shift, const Rows& rows,
                               Point& point) {
    point.square = split.square;
    const double moved = fabs(shift) * sqrt(static_cast<double>(rows.features));
    int64_t correction = 0;
    for (int p = 0; p < kQueryDigits; ++p) {
        // Wraps where so many digits are not used: see most_digits.
        correction = static_cast<int64_t>(256 * static_cast<uint64_t>(correction) +
                                          128 * static_cast<uint64_t>(split.digit_sums[p]));
        point.correction[p] = correction;
        point.step[p] = ldexp(1.0 / unit, 8 * (kQueryDigits - 1 - p));
        point.lost[p] =
            kSlack * sqrt(split.lost[p]) + kRounding * (reach_of(point, rows.longest) + moved);
        point.squares[p] = split.squares[p];
    }
}

// Fills in all of a query but its point and its anchor.
DIFFGEN_HD inline void decide(const Point& point, double sigma, int64_t exclude, const Rows& rows,
                              const Demands& demands, Query& query) {
    const double kappa = 0.5 / (sigma * sigma);
    query.exclude = exclude;
    query.finite = point.finite && sigma >= 0.0 && point.alpha >= 0.0 && point.alpha < INFINITY &&
                   exclude >= -1 && exclude < rows.count;
    query.sigma_is_zero = sigma >= 0.0 && !(kappa < kSteepest);
    query.kappa = query.sigma_is_zero ? 1.0 : kappa;
    const double strictness = demands.score ? smaller(sigma / point.alpha, 1.0) : 1.0;
    const bool fine = demands.functionals || demands.score;
    query.cut = fine ? kFineCut : kCut;
    query.margin = (demands.functionals ? kFunctionalsMargin : kMargin) +
                   fixed_log(larger(static_cast<double>(rows.eligible), 1.0)) -
                   fixed_log(larger(strictness, 1e-6));
    query.weight_tolerance = demands.functionals ? 0.0 : kWeightTolerance * strictness;
    const int most = most_digits(rows.features);
    // A logit is off by at most 2 kappa alpha |x - x_p| |row - origin|.
    const double slope = 2.0 * query.kappa * point.alpha * rows.longest;
    query.digits = kFewestDigits;
    while (query.digits < most &&
           !(slope * point.lost[query.digits - 1] <= kQueryTolerance * strictness)) {
        ++query.digits;
    }
    query.by_differences = query.sigma_is_zero ||
                           !(slope * point.lost[query.digits - 1] <= kQueryTolerance * strictness);
    query.norm_factor = query.kappa * (point.alpha * point.alpha);
    query.product_factor = 2.0 * query.kappa * point.row_scale * point.step[query.digits - 1];
    query.constant = query.by_differences ? 0.0 : query.kappa * point.square;
}

// Screens whose bounds leave that many nats to a row of typical distance are tried first.
constexpr double kFirstWidth = 10.0;

// Leading digits that screen, before anything is known of the rows but their typical length.
DIFFGEN_HD inline int first_planes(const Point& point, const Query& query, double typical) {
    if (query.sigma_is_zero) return 1;
    const double far = point.alpha * typical;
    const double distance = sqrt(point.square + far * far);
    for (int digits = 1; digits < query.digits; ++digits) {
        const double width = 4.0 * query.kappa * distance * point.lost[digits - 1];
        if (width < kFirstWidth) return digits;
    }
    return query.digits;
}

}  // namespace

}  // namespace diffgen::u8
