// The two native families over one block loop.
#pragma once

#include "../problem.h"
#include "kernels.h"

namespace diffgen::cpu {

Outcome moments(const Problem& problem, const MomentsOutput& output, const Kernels& kernels,
                const Control& control);

Outcome covariance_product(const Problem& problem, const CovarianceInput& input,
                           const CovarianceOutput& output, const Kernels& kernels,
                           const Control& control);

}  // namespace diffgen::cpu
