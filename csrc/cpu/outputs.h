// How results are put into the outputs of the moments.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "../problem.h"
#include "nearest.h"

namespace diffgen::cpu {

inline void store_mean(const MomentsOutput& output, int64_t at, double value) {
    if (output.mean_is_double) {
        static_cast<double*>(output.mean)[at] = value;
    } else {
        static_cast<float*>(output.mean)[at] = static_cast<float>(value);
    }
}

// What a query without an answer gets.
inline void write_nothing(const Problem& problem, const MomentsOutput& output, int64_t b) {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    for (int64_t k = 0; k < problem.features; ++k) {
        store_mean(output, b * problem.features + k, nan);
    }
    output.logsumexp[b] = nan;
    if (output.functionals) std::fill_n(output.functionals + 3 * b, 3, nan);
    std::fill_n(output.top_indices + b * output.top_k, output.top_k, int64_t{-1});
    std::fill_n(output.top_distances + b * output.top_k, output.top_k, nan);
}

// Ends the use of `nearest` as a heap.
inline void write_nearest(const MomentsOutput& output, int64_t b, Nearest& nearest) {
    const Neighbour* const sorted = output.top_k > 0 ? nearest.sorted() : nullptr;
    for (int64_t k = 0; k < output.top_k; ++k) {
        const bool found = k < nearest.count();
        output.top_indices[b * output.top_k + k] = found ? sorted[k].id : -1;
        output.top_distances[b * output.top_k + k] =
            found ? std::sqrt(sorted[k].distance) : std::numeric_limits<double>::quiet_NaN();
    }
}

}  // namespace diffgen::cpu
