#include "queries.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../fixed_math.h"

namespace diffgen::cpu::u8 {

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
// Three digits resolve what the densest sums need, five what float64 can do.
constexpr int kFewestDigits = 3;
// From here on sigma counts as zero: kappa times a squared distance would leave the range.
constexpr double kSteepest = 1e250;
// Largest magnitudes under this are zero: their unit would leave the range.
constexpr double kNothing = 1e-250;
// What float64 rounds on the way from a query to its logits, as a length relative to those of x, of
// its move to the origin and of the rows; and slack for the rounding of |x - x_p| itself.
constexpr double kRounding = 0x1p-50;
constexpr double kSlack = 1.0 + 0x1p-20;

// Digits whose products with rows, and those times 256, stay within an int64.
int most_digits(int64_t features) {
    int digits = kQueryDigits;
    while (digits > kFewestDigits &&
           std::ldexp(static_cast<double>(features), 8 * digits + 8) > 0x1p62) {
        --digits;
    }
    return digits;
}

template <typename T>
void widen(const T* query, double shift, int64_t features, double* x) {
    for (int64_t k = 0; k < features; ++k) x[k] = static_cast<double>(query[k]) - shift;
}

double largest_magnitude(const double* x, int64_t features) {
    double largest = 0.0;
    for (int64_t k = 0; k < features; ++k) largest = std::max(largest, std::fabs(x[k]));
    return largest;
}

}  // namespace

QueryBlock::QueryBlock(const Problem& problem, const Kernels& kernels, int64_t begin, int64_t end,
                       const Demands& demands, const Lengths& lengths)
    : count_(end - begin),
      features_(problem.features),
      lengths_(lengths),
      x_(count_ * padded(features_)),
      digits_(count_ * kQueryDigits * padded(features_)),
      points_(count_),
      queries_(count_) {
    const int64_t bytes = features_ * (problem.query_is_double ? 8 : 4);
    const char* const first = static_cast<const char*>(problem.query);
    Buffer<int64_t> member(count_);
    for (int64_t i = 0; i < count_; ++i) {
        const int64_t b = begin + i;
        const double alpha = problem.alpha ? problem.alpha[b] : 1.0;
        int64_t p = 0;
        for (; p < point_count_; ++p) {
            const bool same = points_[p].alpha == alpha &&
                              std::memcmp(first + member[p] * bytes, first + b * bytes,
                                          static_cast<size_t>(bytes)) == 0;
            if (same) break;
        }
        if (p == point_count_) {
            member[p] = b;
            add_point(problem, kernels, b);
        }
        queries_[i].point = p;
        decide(problem, demands, b, queries_[i]);
    }
}

double QueryBlock::reach(const Point& point) const {
    return std::sqrt(point.square) + point.alpha * lengths_.longest;
}

void QueryBlock::set_anchor(const Kernels& kernels, int64_t i, const uint8_t* row) {
    const Point& point = point_of(queries_[i]);
    queries_[i].anchor = row;
    queries_[i].constant =
        queries_[i].kappa * kernels.distance(row, point.x, point.row_scale, features_);
}

void QueryBlock::add_point(const Problem& problem, const Kernels& kernels, int64_t b) {
    const int64_t stride = padded(features_);
    Point& point = points_[point_count_];
    double* const x = x_.data() + point_count_ * stride;
    int8_t* digits[kQueryDigits];
    for (int j = 0; j < kQueryDigits; ++j) {
        digits[j] = digits_.data() + (point_count_ * kQueryDigits + j) * stride;
        point.digits[j] = digits[j];
    }
    ++point_count_;
    point.x = x;
    point.alpha = problem.alpha ? problem.alpha[b] : 1.0;
    point.row_scale = point.alpha * problem.scale;
    const double shift = point.alpha * problem.origin();
    const int64_t at = b * features_;
    if (problem.query_is_double) {
        widen(static_cast<const double*>(problem.query) + at, shift, features_, x);
    } else {
        widen(static_cast<const float*>(problem.query) + at, shift, features_, x);
    }
    const double largest = largest_magnitude(x, features_);
    double square = 0.0;
    for (int64_t k = 0; k < features_; ++k) square += x[k] * x[k];
    point.finite = std::isfinite(square);
    if (!point.finite) return;
    const double unit = largest > kNothing ? kTopDigit * 0x1p32 / largest : 1.0;
    Split split;
    kernels.split(x, features_, unit, digits, &split);
    point.square = split.square;
    const double moved = std::fabs(shift) * std::sqrt(static_cast<double>(features_));
    int64_t correction = 0;
    for (int p = 0; p < kQueryDigits; ++p) {
        // Wraps where so many digits are not used: see most_digits.
        correction = static_cast<int64_t>(256 * static_cast<uint64_t>(correction) +
                                          128 * static_cast<uint64_t>(split.digit_sums[p]));
        point.correction[p] = correction;
        point.step[p] = std::ldexp(1.0 / unit, 8 * (kQueryDigits - 1 - p));
        point.lost[p] = kSlack * std::sqrt(split.lost[p]) + kRounding * (reach(point) + moved);
        point.squares[p] = split.squares[p];
    }
}

void QueryBlock::decide(const Problem& problem, const Demands& demands, int64_t b,
                        Query& query) const {
    const Point& point = points_[query.point];
    const double sigma = problem.sigma[b];
    const double kappa = 0.5 / (sigma * sigma);
    query.exclude = problem.exclude ? problem.exclude[b] : -1;
    query.finite = point.finite && sigma >= 0.0 && point.alpha >= 0.0 &&
                   std::isfinite(point.alpha) && query.exclude >= -1 &&
                   query.exclude < problem.count;
    query.sigma_is_zero = sigma >= 0.0 && !(kappa < kSteepest);
    query.kappa = query.sigma_is_zero ? 1.0 : kappa;
    const double rows = static_cast<double>(problem.rows ? problem.row_count : problem.count);
    const double strictness = demands.score ? std::min(sigma / point.alpha, 1.0) : 1.0;
    const bool fine = demands.functionals || demands.score;
    query.cut = fine ? kFineCut : kCut;
    query.margin = (demands.functionals ? kFunctionalsMargin : kMargin) +
                   fixed_log(std::max(rows, 1.0)) - fixed_log(std::max(strictness, 1e-6));
    query.weight_tolerance = demands.functionals ? 0.0 : kWeightTolerance * strictness;
    const int most = most_digits(features_);
    // A logit is off by at most 2 kappa alpha |x - x_p| |row - origin|.
    const double slope = 2.0 * query.kappa * point.alpha * lengths_.longest;
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

}  // namespace diffgen::cpu::u8
