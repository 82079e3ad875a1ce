// The posterior of one query over some rows, with its mean and its nearest rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../u8/posterior_rules.h"
#include "../nearest.h"
#include "kernels.h"

namespace diffgen::cpu::u8 {

struct Posterior : State {
    double* mean = nullptr;  // sum of quantised weight times (row - 128), (features,)
    Nearest nearest;

    void clear() { static_cast<State&>(*this) = State(); }

    void absorb(const Kernels& kernels, const Posterior& other, int64_t features, double margin,
                bool sigma_is_zero) {
        nearest.absorb(other.nearest);
        const Factors factors =
            meet(*this, other.reference, other.nearest_square, margin, sigma_is_zero);
        if (factors.fresh == 0.0) return;
        if (factors.old == 0.0 && factors.fresh == 1.0) {
            std::copy_n(other.mean, features, mean);
        } else {
            kernels.merge(other.mean, features, factors.old, factors.fresh, mean);
        }
        join(*this, other.sums, other.reference, other.nearest_square, factors);
    }
};

}  // namespace diffgen::cpu::u8
