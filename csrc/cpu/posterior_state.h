// The running posterior of one query over the rows seen so far: it merges exactly.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels.h"
#include "nearest.h"

namespace diffgen::cpu {

struct PosteriorState {
    double best = -1e308;          // the largest logit seen; at sigma = 0 less the least distance
    double reference = -INFINITY;  // weights are exp(logit - reference)
    double mass = 0.0;             // sum of weights
    double mass_squares = 0.0;     // sum of squared weights
    double mass_logits = 0.0;      // sum of weight (logit - reference)
    double mass_norms = 0.0;       // sum of weight |row - origin|^2
    double mass_errors = 0.0;      // sum of weight times the squared bound on its logit's error
    double* sums = nullptr;        // sum of weight z, float64
    float* sums_low = nullptr;     // the part not yet added to `sums`, float32; null where unused
    int64_t chains = 0;            // additions to `sums_low` since it was last emptied
    Nearest nearest;

    void flush(const Kernels& kernels, int64_t features) {
        if (chains > 0) kernels.empty(sums_low, features, sums);
        chains = 0;
    }

    // Moves the reference to `target`, scaling what has been summed.
    void refer_to(const Kernels& kernels, double target, int64_t features) {
        if (target == reference) return;
        flush(kernels, features);
        const double factor = mass > 0.0 ? std::exp(reference - target) : 0.0;
        if (mass > 0.0) {
            mass_logits = factor * (mass_logits + (reference - target) * mass);
            mass *= factor;
            mass_squares *= factor * factor;
            mass_norms *= factor;
            mass_errors *= factor;
            for (int64_t k = 0; k < features; ++k) sums[k] *= factor;
        }
        reference = target;
    }

    void clear_sums(int64_t features) {
        mass = mass_squares = mass_logits = mass_norms = mass_errors = 0.0;
        for (int64_t k = 0; k < features; ++k) sums[k] = 0.0;
    }

    void absorb(const Kernels& kernels, PosteriorState& other, int64_t features) {
        nearest.absorb(other.nearest);
        other.flush(kernels, features);
        flush(kernels, features);
        if (other.mass == 0.0) return;
        refer_to(kernels, std::max(reference, other.reference), features);
        other.refer_to(kernels, reference, features);
        mass += other.mass;
        mass_squares += other.mass_squares;
        mass_logits += other.mass_logits;
        mass_norms += other.mass_norms;
        mass_errors += other.mass_errors;
        for (int64_t k = 0; k < features; ++k) sums[k] += other.sums[k];
        best = std::max(best, other.best);
    }
};

}  // namespace diffgen::cpu
