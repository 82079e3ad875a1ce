// Mean, logsumexp and what goes with them over 8-bit rows, in integer arithmetic.
#pragma once

#include "../../problem.h"
#include "kernels.h"

namespace diffgen::cpu::u8 {

// The same bits for a query whatever the batch it is in, the number of threads, the instruction
// set, and `Control::screening_digits`.
Outcome moments(const Problem& problem, const MomentsOutput& output, const Kernels& kernels,
                const Control& control);

}  // namespace diffgen::cpu::u8
