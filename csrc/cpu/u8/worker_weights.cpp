// What the rows that matter weigh, and where they are added.

#include <algorithm>
#include <cmath>

#include "worker.h"

namespace diffgen::cpu::u8 {

namespace {

// From this share of its rows on, in per cent, all rows of a dense tile are summed, together with
// those of other queries.
constexpr int64_t kWholeShare = 60;

}  // namespace

// Takes the chosen rows: those of a dense tile are weighted, others wait for the segment's end.
void Worker::accept(const Query& query, int64_t i, double nearest_square, Posterior& part) {
    Unit& pending = pending_[i];
    if (!query.sigma_is_zero &&
        chosen_.best < std::max(part.reference, pending.best) - query.margin) {
        return;
    }
    const double floor = chosen_.best - query.cut;
    int64_t kept = 0;
    for (int64_t s = 0; s < chosen_.count; ++s) {
        positions_[kept] = positions_[s];
        chosen_.logits[kept] = chosen_.logits[s];
        kept += chosen_.logits[s] >= floor;
    }
    chosen_.count = kept;
    if (kept == 0) return;
    for (int64_t s = 0; s < kept; ++s) {
        chosen_.rows[s] = tile_.rows()[positions_[s]];
        chosen_.norms[s] = tile_.norms()[positions_[s]];
        chosen_.places[s] = tile_.place(positions_[s]);
    }
    const bool dense = is_dense(kept, tile_.count());
    if (!dense && !query.sigma_is_zero) {
        std::copy_n(chosen_.logits, kept, pending.logits + pending.count);
        std::copy_n(chosen_.norms, kept, pending.norms + pending.count);
        for (int64_t s = 0; s < kept; ++s) {
            pending.rows[pending.count + s] = keep(chosen_.rows[s], chosen_.places[s]);
        }
        std::copy_n(chosen_.places, kept, pending.places + pending.count);
        pending.count += kept;
        pending.best = std::max(pending.best, chosen_.best);
        return;
    }
    settle(query, i, part);
    chosen_.nearest_square = nearest_square;
    // Where many rows are left out, those that are left are picked: the sums are the same.
    const bool whole = kept * 100 >= kWholeShare * tile_.count();
    int8_t* const room =
        whole ? dense_digits_.data() + i * kWeightDigits * digit_stride_ : sparse_digits_.data();
    const WeightedSum sum = weigh(query, chosen_, whole ? positions_.data() : nullptr, room, part);
    if (sum.count == 0) return;
    if (whole) {
        sums_.push_back(sum);
    } else {
        weighted_sums_.add_one(chosen_.rows, chosen_.count, sum, nullptr);
    }
}

// The row, where it stays for the rest of the segment.
const uint8_t* Worker::keep(const uint8_t* row, int64_t place) {
    if (!from_file_) return row;
    uint8_t* const kept = waiting_.get() + place * features_;
    if (!waits_[place]) std::copy_n(row, features_, kept);
    waits_[place] = true;
    return kept;
}

// Weighs what sparse tiles left.
void Worker::settle(const Query& query, int64_t i, Posterior& part) {
    Unit& unit = pending_[i];
    const double floor = unit.best - query.cut;
    int64_t kept = 0;
    for (int64_t s = 0; s < unit.count; ++s) {
        unit.logits[kept] = unit.logits[s];
        unit.norms[kept] = unit.norms[s];
        unit.rows[kept] = unit.rows[s];
        unit.places[kept] = unit.places[s];
        kept += unit.logits[s] >= floor;
    }
    unit.count = kept;
    if (kept > 0) {
        const WeightedSum sum = weigh(query, unit, nullptr, sparse_digits_.data(), part);
        if (sum.count > 0) weighted_sums_.add_one(unit.rows, kept, sum, nullptr);
    }
    unit.count = 0;
    unit.best = -INFINITY;
}

// Joins a unit to the posterior, but for its mean: that is the sum returned, of no digits where
// the unit is dropped. With `positions` the weights are laid out over the whole tile.
WeightedSum Worker::weigh(const Query& query, const Unit& unit, const int64_t* positions,
                          int8_t* room, Posterior& part) {
    WeightedSum sum{};
    const Factors factors =
        meet(part, unit.best, unit.nearest_square, query.margin, query.sigma_is_zero);
    if (factors.fresh == 0.0) return sum;
    const double mass =
        static_cast<double>(kernels_.weigh(unit.logits, unit.count, unit.best,
                                           unit.best - query.cut, weights_.data())) /
        kMassUnit;
    const int digits = weight_digits(unit.count, mass, query.weight_tolerance);
    for (int j = 0; j < digits; ++j) sum.digits[j] = room + j * digit_stride_;
    const double* weights = weights_.data();
    int64_t places = unit.count;
    if (positions != nullptr && unit.count < tile_.count()) {
        places = tile_.count();
        std::fill_n(spread_.data(), places, 0.0);
        for (int64_t s = 0; s < unit.count; ++s) spread_[positions[s]] = weights_[s];
        weights = spread_.data();
    }
    const int64_t whole = kernels_.weight_digits(weights, places, digits, sum.digits);
    Sums sums = task_.functionals ? sums_of(unit) : Sums();
    sums.quantised = static_cast<double>(whole) * weight_step(digits);
    sums.mass = mass;
    sum.count = digits;
    sum.centre = 128 * whole;
    sum.old = factors.old;
    sum.fresh = factors.fresh * weight_step(digits);
    sum.mean = part.mean;
    join(part, sums, unit.best, unit.nearest_square, factors);
    return sum;
}

// The functionals' sums over a unit, in lanes that follow from the rows' places.
Sums Worker::sums_of(const Unit& unit) const {
    double lanes[4][kRowLanes] = {};
    for (int64_t s = 0; s < unit.count; ++s) {
        const int64_t lane = unit.places[s] % kRowLanes;
        const double weight = weights_[s];
        lanes[0][lane] += weight;
        lanes[1][lane] += weight * weight;
        lanes[2][lane] += weight * (unit.logits[s] - unit.best);
        lanes[3][lane] += weight * unit.norms[s];
    }
    for (auto& lane : lanes) {
        for (int width = kRowLanes / 2; width > 0; width /= 2) {
            for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
        }
    }
    Sums sums;
    sums.weights = lanes[0][0];
    sums.squares = lanes[1][0];
    sums.logits = lanes[2][0];
    sums.norms = lanes[3][0];
    return sums;
}

}  // namespace diffgen::cpu::u8
