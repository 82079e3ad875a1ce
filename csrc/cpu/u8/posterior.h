// The posterior of one query over some rows; merging two is a fixed sequence of operations.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../fixed_math.h"
#include "../nearest.h"
#include "kernels.h"

namespace diffgen::cpu::u8 {

// Squared distances closer than this, relatively, are the same at sigma = 0.
constexpr double kTie = 1e-12;

// Sums of weights exp(logit - reference) over rows.
struct Sums {
    double quantised = 0.0;  // the weights as the mean takes them
    double mass = 0.0;       // as the log-sum-exp takes them
    // As the functionals take them: the weights, their squares, and with the logits less the
    // reference and the squared lengths of the rows.
    double weights = 0.0;
    double squares = 0.0;
    double logits = 0.0;
    double norms = 0.0;
};

// What two posteriors are multiplied with when they merge.
struct Factors {
    double old = 1.0;
    double fresh = 0.0;
    double reference = -INFINITY;
};

struct Posterior {
    double reference = -INFINITY;      // -inf: no rows yet
    double nearest_square = INFINITY;  // at sigma = 0
    Sums sums;
    double* mean = nullptr;  // sum of quantised weight times (row - 128), (features,)
    Nearest nearest;

    bool empty() const { return reference == -INFINITY; }

    void clear() {
        reference = -INFINITY;
        nearest_square = INFINITY;
        sums = Sums();
    }

    // How rows with this reference join. One side is dropped, exactly, where it is further than
    // `margin` below the other, or at sigma = 0 not among the nearest.
    Factors meet(double other, double other_square, double margin, bool sigma_is_zero) const {
        if (other == -INFINITY) return {1.0, 0.0, reference};
        if (empty()) return {0.0, 1.0, other};
        if (sigma_is_zero) {
            if (other_square > nearest_square * (1.0 + kTie)) return {1.0, 0.0, reference};
            if (nearest_square > other_square * (1.0 + kTie)) return {0.0, 1.0, other};
        } else {
            if (other < reference - margin) return {1.0, 0.0, reference};
            if (reference < other - margin) return {0.0, 1.0, other};
        }
        const double larger = std::max(reference, other);
        return {fixed_exp(reference - larger), fixed_exp(other - larger), larger};
    }

    // All but the mean.
    void join(const Sums& other, double other_reference, double other_square,
              const Factors& factors) {
        if (factors.fresh == 0.0) return;
        const double to_old = empty() ? 0.0 : reference - factors.reference;
        const double to_fresh = other_reference - factors.reference;
        sums.logits = factors.old * (sums.logits + to_old * sums.weights) +
                      factors.fresh * (other.logits + to_fresh * other.weights);
        sums.quantised = factors.old * sums.quantised + factors.fresh * other.quantised;
        sums.mass = factors.old * sums.mass + factors.fresh * other.mass;
        sums.weights = factors.old * sums.weights + factors.fresh * other.weights;
        sums.squares = factors.old * factors.old * sums.squares +
                       factors.fresh * factors.fresh * other.squares;
        sums.norms = factors.old * sums.norms + factors.fresh * other.norms;
        reference = factors.reference;
        nearest_square = std::min(nearest_square, other_square);
    }

    void absorb(const Kernels& kernels, const Posterior& other, int64_t features, double margin,
                bool sigma_is_zero) {
        nearest.absorb(other.nearest);
        const Factors factors = meet(other.reference, other.nearest_square, margin, sigma_is_zero);
        if (factors.fresh == 0.0) return;
        if (factors.old == 0.0 && factors.fresh == 1.0) {
            std::copy_n(other.mean, features, mean);
        } else {
            kernels.merge(other.mean, features, factors.old, factors.fresh, mean);
        }
        join(other.sums, other.reference, other.nearest_square, factors);
    }
};

}  // namespace diffgen::cpu::u8
