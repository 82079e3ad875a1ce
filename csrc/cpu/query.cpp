#include "query.h"

#include <algorithm>
#include <cmath>

namespace diffgen::cpu {

namespace {

constexpr double kUnit32 = 0x1p-24;
constexpr double kUnit64 = 0x1p-53;
// First-order bounds are widened by this for the higher orders.
constexpr double kSlack = 1.001;
// Of the 1e-5 promised for the mean, what the logits may take; the weighted sum takes the rest
// (its chains are kSumChain + 16 additions long) and the dropped rows.
constexpr double kTolerance = 7.4e-6;
// From here on sigma counts as zero: kappa times a squared distance would leave the range.
constexpr double kSteepest = 1e250;
// Of the 1e-9 promised for float64 queries.
constexpr double kDoubleTolerance = 2e-10;
// Rows that many nats and the logarithm of the count below the best are dropped.
constexpr double kMargin = 17.0;
constexpr double kDoubleMargin = 40.0;

// Roundings that the products of the vector-th vector of features pass through before they are
// promoted to float64: the additions left in its sum, the two sums' addition, and those that fold
// the vector.
int chain_weight(int64_t vector, const Kernels& kernels) {
    const int64_t place = vector % kChainVectors;
    return static_cast<int>(kChainVectors / 2 - place / 2) + 1 + kernels.extra_roundings;
}

double sum_of_squares(const double* x, int64_t count) {
    double parts[8] = {};
    int64_t k = 0;
    for (; k + 8 <= count; k += 8) {
        for (int p = 0; p < 8; ++p) parts[p] += x[k + p] * x[k + p];
    }
    for (; k < count; ++k) parts[0] += x[k] * x[k];
    double total = 0.0;
    for (const double part : parts) total += part;
    return total;
}

// x = query - shift, and its rounding to float. Returns the length of what the rounding took.
template <typename T>
double widen(const T* query, double shift, int64_t features, double* wide, float* low) {
    double lost[8] = {};
    for (int64_t k = 0; k < features; ++k) {
        const double x = static_cast<double>(query[k]) - shift;
        wide[k] = x;
        low[k] = static_cast<float>(x);
    }
    for (int64_t k = 0; k < features; ++k) {
        const double gap = wide[k] - static_cast<double>(low[k]);
        lost[k % 8] += gap * gap;
    }
    double total = 0.0;
    for (const double part : lost) total += part;
    return std::sqrt(total);
}

}  // namespace

QueryBlock::QueryBlock(const Problem& problem, const Kernels& kernels, int64_t begin, int64_t end,
                       const Demands& demands)
    : count_(end - begin) {
    const int64_t features = problem.features;
    const int64_t stride_low = padded_stride<float>(features);
    const int64_t stride_wide = padded_stride<double>(features);
    low_ = Buffer<float>(count_ * stride_low);
    wide_ = Buffer<double>(count_ * stride_wide);
    queries_ = Buffer<Query>(count_);
    const double rows = static_cast<double>(problem.rows ? problem.row_count : problem.count);
    const double origin = problem.origin();
    // Rounding of float64 rows to float.
    const int row_roundings = problem.storage == Storage::f64 ? 1 : 0;
    for (int64_t i = 0; i < count_; ++i) {
        const int64_t b = begin + i;
        Query& query = queries_[i];
        float* const low = low_.data() + i * stride_low;
        double* const wide = wide_.data() + i * stride_wide;
        query.low = low;
        query.wide = wide;
        query.alpha = problem.alpha ? problem.alpha[b] : 1.0;
        query.row_scale = query.alpha * problem.scale;
        query.exclude = problem.exclude ? problem.exclude[b] : -1;
        query.is_double = problem.query_is_double;
        query.anchored = query.is_double || demands.score;
        query.careful = demands.careful;
        query.typical_length = demands.typical_length;
        const double shift = query.alpha * origin;
        const int64_t at = b * features;
        const double lost =
            problem.query_is_double
                ? widen(static_cast<const double*>(problem.query) + at, shift, features, wide, low)
                : widen(static_cast<const float*>(problem.query) + at, shift, features, wide, low);
        double square = 0.0;
        double weighted = 0.0;
        // Two levels of sums, so that no sum is long.
        const int64_t group = 32 * kernels.lanes;
        for (int64_t first = 0; first < features; first += group) {
            const int64_t last = std::min(features, first + group);
            double group_square = 0.0;
            for (int64_t k = first; k < last; k += kernels.lanes) {
                const double part =
                    sum_of_squares(wide + k, std::min<int64_t>(kernels.lanes, last - k));
                const double weight = chain_weight(k / kernels.lanes, kernels) + row_roundings;
                group_square += part;
                weighted += weight * weight * part;
            }
            square += group_square;
        }
        query.square = square;
        // The move to the origin is rounded too, in each feature by as much as the origin is.
        query.length =
            std::sqrt(square) + std::fabs(shift) * std::sqrt(static_cast<double>(features));
        query.finite = std::isfinite(square);
        query.low_slope = 2.0 * query.alpha * kSlack * (kUnit32 * std::sqrt(weighted) + lost);
        query.wide_factor = kUnit64 * (200.0 + static_cast<double>(features) / 128.0);
        // Beyond the range of float the products are not to be trusted.
        if (query.length > 1e18) query.low_slope = INFINITY;
        const double sigma = problem.sigma[b];
        const double kappa = 0.5 / (sigma * sigma);
        query.sigma_is_zero = sigma >= 0.0 && !(kappa < kSteepest);
        query.kappa = query.sigma_is_zero ? 1.0 : kappa;
        const bool excludes_a_row = query.exclude >= -1 && query.exclude < problem.count;
        query.finite &=
            sigma >= 0.0 && query.alpha >= 0.0 && std::isfinite(query.alpha) && excludes_a_row;
        const bool doubles = problem.query_is_double;
        query.tolerance = doubles ? kDoubleTolerance : kTolerance;
        if (demands.score) query.tolerance *= std::min(sigma / query.alpha, 1.0);
        query.log_rows = std::log(rows > 1.0 ? rows : 1.0);
        query.margin =
            query.log_rows + std::max(doubles ? kDoubleMargin : kMargin, demands.least_margin);
    }
}

}  // namespace diffgen::cpu
