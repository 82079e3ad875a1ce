// Squared lengths of 8-bit rows.
#pragma once

#include <cstdint>

#include "../problem.h"

namespace diffgen::cpu {

// Sums of (row - 128)^2 over the features of each row, exactly. False when the call was stopped.
bool byte_norms(const uint8_t* data, int64_t rows, int64_t features, int64_t* norms,
                const Control& control);

}  // namespace diffgen::cpu
