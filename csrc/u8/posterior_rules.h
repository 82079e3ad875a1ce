// The posterior of one query over some rows, but for its mean; merging two is a fixed sequence of
// operations.
#pragma once

#include <cmath>
#include <cstdint>

#include "row_rules.h"

namespace diffgen::u8 {

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

struct State {
    double reference = -INFINITY;      // -inf: no rows yet
    double nearest_square = INFINITY;  // at sigma = 0
    Sums sums;

    DIFFGEN_HD bool empty() const { return reference == -INFINITY; }
};

namespace {

// How rows with this reference join. One side is dropped, exactly, where it is further than
// `margin` below the other, or at sigma = 0 not among the nearest.
DIFFGEN_HD inline Factors meet(const State& state, double other, double other_square, double margin,
                               bool sigma_is_zero) {
    if (other == -INFINITY) return {1.0, 0.0, state.reference};
    if (state.empty()) return {0.0, 1.0, other};
    if (sigma_is_zero) {
        if (other_square > state.nearest_square * (1.0 + kTie)) return {1.0, 0.0, state.reference};
        if (state.nearest_square > other_square * (1.0 + kTie)) return {0.0, 1.0, other};
    } else {
        if (other < state.reference - margin) return {1.0, 0.0, state.reference};
        if (state.reference < other - margin) return {0.0, 1.0, other};
    }
    const double top = larger(state.reference, other);
    return {fixed_exp(state.reference - top), fixed_exp(other - top), top};
}

DIFFGEN_HD inline void join(State& state, const Sums& other, double other_reference,
                            double other_square, const Factors& factors) {
    if (factors.fresh == 0.0) return;
    Sums& sums = state.sums;
    const double to_old = state.empty() ? 0.0 : state.reference - factors.reference;
    const double to_fresh = other_reference - factors.reference;
    sums.logits = factors.old * (sums.logits + to_old * sums.weights) +
                  factors.fresh * (other.logits + to_fresh * other.weights);
    sums.quantised = factors.old * sums.quantised + factors.fresh * other.quantised;
    sums.mass = factors.old * sums.mass + factors.fresh * other.mass;
    sums.weights = factors.old * sums.weights + factors.fresh * other.weights;
    sums.squares =
        factors.old * factors.old * sums.squares + factors.fresh * factors.fresh * other.squares;
    sums.norms = factors.old * sums.norms + factors.fresh * other.norms;
    state.reference = factors.reference;
    state.nearest_square = smaller(state.nearest_square, other_square);
}

// From a quarter of its rows on a tile is dense: they are weighted by themselves. What other tiles
// leave waits for the next dense one, or for the segment's end.
constexpr int64_t kDenseShare = 4;

DIFFGEN_HD inline bool is_dense(int64_t kept, int64_t rows) {
    return kept * kDenseShare >= rows;
}

// Weights as digits: a unit of the first `count` ones.
DIFFGEN_HD inline double weight_step(int count) {
    return ldexp(1.0 / kTopDigit, -8 * (count - 1));
}

// Digits of the weights of a unit of so many rows: each weight is off by half a unit at most, each
// row by the whole range at most.
DIFFGEN_HD inline int weight_digits(int64_t rows, double mass, double tolerance) {
    int digits = kWeightDigits - 2;
    while (digits < kWeightDigits &&
           !(static_cast<double>(rows) * weight_step(digits) <= tolerance * mass)) {
        ++digits;
    }
    return digits;
}

}  // namespace

}  // namespace diffgen::u8
