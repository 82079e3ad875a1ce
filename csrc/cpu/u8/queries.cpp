#include "queries.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace diffgen::cpu::u8 {

namespace {

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
                       const Demands& demands, const Rows& rows, double typical_length)
    : count_(end - begin),
      rows_(rows),
      typical_length_(typical_length),
      x_(count_ * padded(rows_.features)),
      digits_(count_ * kQueryDigits * padded(rows_.features)),
      points_(count_),
      queries_(count_) {
    const int64_t bytes = rows_.features * (problem.query_is_double ? 8 : 4);
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
        decide(points_[p], problem.sigma[b], problem.exclude ? problem.exclude[b] : -1, rows_,
               demands, queries_[i]);
    }
}

void QueryBlock::set_anchor(const Kernels& kernels, int64_t i, const uint8_t* row) {
    const Point& point = point_of(queries_[i]);
    queries_[i].anchor = row;
    queries_[i].constant =
        queries_[i].kappa * kernels.distance(row, point.x, point.row_scale, rows_.features);
}

void QueryBlock::add_point(const Problem& problem, const Kernels& kernels, int64_t b) {
    const int64_t features = rows_.features;
    const int64_t stride = padded(features);
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
    const int64_t at = b * features;
    if (problem.query_is_double) {
        widen(static_cast<const double*>(problem.query) + at, shift, features, x);
    } else {
        widen(static_cast<const float*>(problem.query) + at, shift, features, x);
    }
    const double largest = largest_magnitude(x, features);
    double square = 0.0;
    for (int64_t k = 0; k < features; ++k) square += x[k] * x[k];
    point.finite = std::isfinite(square);
    if (!point.finite) return;
    const double unit = unit_of(largest);
    Split split;
    kernels.split(x, features, unit, digits, &split);
    measure(split, unit, shift, rows_, point);
}

}  // namespace diffgen::cpu::u8
