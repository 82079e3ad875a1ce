// Lengths of the eligible rows of a problem about the origin.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../problem.h"

namespace diffgen::cpu {

struct Lengths {
    double longest = 0.0;
    double typical = 0.0;  // root mean square
};

inline Lengths lengths_of(const Problem& problem) {
    const int64_t rows = problem.rows ? problem.row_count : problem.count;
    double total = 0.0;
    double largest = 0.0;
    for (int64_t at = 0; at < rows; ++at) {
        const double norm = problem.norms[problem.rows ? problem.rows[at] : at];
        total += norm;
        largest = std::max(largest, norm);
    }
    const double count = static_cast<double>(std::max<int64_t>(rows, 1));
    return {std::sqrt(largest), std::sqrt(total / count)};
}

}  // namespace diffgen::cpu
