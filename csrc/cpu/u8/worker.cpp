#include "worker.h"

#include <algorithm>
#include <cmath>

namespace diffgen::cpu::u8 {

namespace {

// From a quarter of its rows on a tile is dense: they are weighted by themselves, together with
// those of other queries. The bits of a result depend on it.
constexpr int64_t kDenseShare = 4;
constexpr int64_t kMostPending = kSegmentRows / kDenseShare;
// From this share of its rows on, in per cent, all rows of a dense tile are summed, together with
// those of other queries.
constexpr int64_t kWholeShare = 60;
// Roundings of an expanded squared distance, relative to (|x| + alpha |row|)^2: of its assembly,
// and for each feature of |x_p|^2.
constexpr double kExpandedRounding = 0x1p-49;
constexpr double kSquareRounding = 0x1p-56;
// When logits are compared with bounds on their true values, in nats: twice what the query's digits
// may take of each, and the rounding of either, relative to the largest and for each feature.
constexpr double kCompareSlack = 1.6e-5;
constexpr double kCompareRounding = 0x1p-46;
constexpr double kSumRounding = 0x1p-58;
// At sigma = 0 squared distances under this share of the squared lengths are nothing.
constexpr double kCoincident = 0x1p-98;

// Weights as digits: a unit of the first `count` ones.
double weight_step(int count) {
    return std::ldexp(1.0 / kTopDigit, -8 * (count - 1));
}

}  // namespace

Worker::Worker(const Task& task, int64_t queries)
    : task_(task),
      kernels_(task.kernels),
      features_(task.problem.features),
      tile_(task.problem),
      plan_(queries, task.forced_planes),
      planes_(static_cast<size_t>(queries)),
      plane_products_((queries + 1) * kQueryDigits * tile_.capacity()),
      positions_(tile_.capacity()),
      chosen_logits_(tile_.capacity()),
      chosen_norms_(tile_.capacity()),
      chosen_rows_(tile_.capacity()),
      pending_(static_cast<size_t>(queries)),
      pending_logits_(queries * kMostPending),
      pending_norms_(queries * kMostPending),
      pending_rows_(queries * kMostPending),
      products_(tile_.capacity()),
      logits_(tile_.capacity()),
      upper_(tile_.capacity()),
      distances_(tile_.capacity()),
      near_(tile_.capacity()),
      candidate_products_(tile_.capacity()),
      candidate_log_weights_(tile_.capacity()),
      weights_(kSegmentRows),
      spread_(tile_.capacity()),
      digit_stride_(padded(std::max(tile_.capacity(), kMostPending))),
      sparse_digits_(kWeightDigits * digit_stride_),
      dense_digits_(queries * kWeightDigits * digit_stride_),
      weighted_sums_(kernels_, features_, std::max(tile_.capacity(), kMostPending)) {
    chosen_.logits = chosen_logits_.data();
    chosen_.norms = chosen_norms_.data();
    chosen_.rows = chosen_rows_.data();
    for (int64_t i = 0; i < queries; ++i) {
        pending_[i].logits = pending_logits_.data() + i * kMostPending;
        pending_[i].norms = pending_norms_.data() + i * kMostPending;
        pending_[i].rows = pending_rows_.data() + i * kMostPending;
    }
}

void Worker::forget() {
    planned_for_ = nullptr;
}

void Worker::run(const QueryBlock& queries, int64_t segment, const std::atomic<double>* known,
                 Posterior* parts, StopSign& stop, bool on_caller) {
    queries_ = &queries;
    if (planned_for_ != &queries) {
        planned_for_ = &queries;
        plan_.start(queries);
    }
    for (int64_t i = 0; i < queries.count(); ++i) {
        parts[i].clear();
        pending_[i].count = 0;
        pending_[i].best = -INFINITY;
        if (task_.top_k > 0) parts[i].nearest.clear();
    }
    const int64_t last = task_.segments.begin(segment + 1);
    for (int64_t at = task_.segments.begin(segment); at < last; at += tile_.capacity()) {
        if (stop.check(on_caller)) return;
        tile_.load(task_.segments, at, std::min(last, at + tile_.capacity()), last);
        form_products();
        plan_.count_tile();
        sums_.clear();
        for (int64_t i = 0; i < queries.count(); ++i) {
            if (queries[i].finite) take(i, parts[i]);
        }
        if (sums_.size() == 1) {
            weighted_sums_.add_one(tile_.rows(), tile_.count(), sums_[0], tile_.ahead());
        } else if (sums_.size() > 1) {
            weighted_sums_.add(tile_.rows(), tile_.count(), sums_.data(),
                               static_cast<int64_t>(sums_.size()));
        }
    }
    for (int64_t i = 0; i < queries.count(); ++i) {
        if (!queries[i].finite) continue;
        const double reference = std::max(parts[i].reference, pending_[i].best);
        const double least = known[i].load(std::memory_order_relaxed) - queries[i].margin;
        if (!queries[i].sigma_is_zero && reference < least) {
            // Its merge with the segments before would drop it.
            parts[i].clear();
        } else {
            settle(queries[i], i, parts[i]);
        }
    }
}

void Worker::form_products() {
    std::fill(planes_.begin(), planes_.end(), 0);
    for (int64_t i = 0; i < queries_->count(); ++i) {
        const Query& query = (*queries_)[i];
        if (query.finite) planes_[query.point] = std::max(planes_[query.point], plan_[i]);
    }
    columns_.clear();
    outs_.clear();
    int64_t* out = plane_products_.data();
    for (int64_t p = 0; p < queries_->point_count(); ++p) {
        for (int j = 0; j < planes_[p]; ++j) {
            columns_.push_back(queries_->point(p).digits[j]);
            outs_.push_back(out + j * tile_.capacity());
        }
        out += kQueryDigits * tile_.capacity();
    }
    kernels_.products(tile_.rows(), tile_.count(), columns_.data(),
                      static_cast<int64_t>(columns_.size()), features_,
                      queries_->count() == 1 ? tile_.early() : tile_.ahead(), outs_.data());
}

void Worker::take(int64_t i, Posterior& part) {
    const Query& query = (*queries_)[i];
    excluded_ = query.exclude < 0 ? -1 : tile_.find(query.exclude);
    bounds_known_ = false;
    chosen_.count = 0;
    chosen_.best = -INFINITY;
    const int planes = planes_[query.point];
    const int used = query.by_differences ? planes : std::min(planes, query.digits);
    const int64_t* sources[kQueryDigits];
    for (int j = 0; j < used; ++j) {
        sources[j] = plane_products_.data() + (query.point * kQueryDigits + j) * tile_.capacity();
    }
    kernels_.combine(sources, used, tile_.count(), products_.data());
    planes_used_ = used;
    if (query.sigma_is_zero) {
        take_nearest(query, i, part);
        return;
    }
    if (!query.by_differences && used == query.digits) {
        decide_all(query, i);
    } else {
        screen(query, i, part);
    }
    if (task_.top_k > 0) offer_nearest(query, part);
    if (chosen_.count > 0) accept(query, i, INFINITY, part);
}

// Logits of all rows from all their digits; those too low to count are sorted out by `accept`.
void Worker::decide_all(const Query& query, int64_t i) {
    const int64_t rows = tile_.count();
    const Point& point = queries_->point_of(query);
    chosen_.best = kernels_.logits(products_.data(), tile_.norms(), tile_.log_weights(), rows,
                                   point.correction[query.digits - 1], query.norm_factor,
                                   query.product_factor, chosen_.logits);
    if (excluded_ >= 0) {
        chosen_.logits[excluded_] = -INFINITY;
        chosen_.best = *std::max_element(chosen_.logits, chosen_.logits + rows);
    }
    plan_.revise(*queries_, i, chosen_.logits, rows, chosen_.best);
    for (int64_t r = 0; r < rows; ++r) positions_[r] = r;
    chosen_.count = rows;
}

BoundTerms Worker::bound_terms(const Point& point, int planes) const {
    const double reach = queries_->reach(point);
    const double rounding = kExpandedRounding + kSquareRounding * static_cast<double>(features_);
    return {point.correction[planes - 1], point.squares[planes - 1],
            point.alpha * point.alpha,    2.0 * point.row_scale * point.step[planes - 1],
            rounding * reach * reach,     point.lost[planes - 1]};
}

void Worker::find_bounds(const Query& query) {
    if (bounds_known_) return;
    kernels_.bounds(products_.data(), tile_.norms(), tile_.count(),
                    bound_terms(queries_->point_of(query), planes_used_), distances_.data(),
                    near_.data());
    bounds_known_ = true;
}

void Worker::screen(const Query& query, int64_t i, const Posterior& part) {
    const Point& point = queries_->point_of(query);
    const int64_t rows = tile_.count();
    const BoundTerms terms = bound_terms(point, planes_used_);
    Screened best =
        kernels_.screen(products_.data(), tile_.norms(), tile_.log_weights(), rows, terms,
                        query.kappa, query.constant, logits_.data(), upper_.data());
    if (excluded_ >= 0) {
        logits_[excluded_] = upper_[excluded_] = -INFINITY;
        best.seeming = *std::max_element(logits_.data(), logits_.data() + rows);
        best.possible = *std::max_element(upper_.data(), upper_.data() + rows);
    }
    if (best.seeming == -INFINITY) return;
    plan_.revise(*queries_, i, logits_.data(), rows, best.seeming);
    const double rounding = kCompareRounding + kSumRounding * static_cast<double>(features_);
    const double slack =
        kCompareSlack + rounding * (std::fabs(best.seeming) + std::fabs(query.constant));
    double floor = std::max(part.reference, pending_[i].best) - query.margin - slack;
    if (best.possible < floor) return;
    // A lower bound of the best logit: that of the row that seems best.
    const int64_t nearest =
        std::find(logits_.data(), logits_.data() + rows, best.seeming) - logits_.data();
    if (nearest == rows) return;
    const double log_weight = tile_.log_weights()[nearest];
    const double distance = (log_weight + query.constant - best.seeming) / query.kappa;
    const double far = std::sqrt(std::max(0.0, distance) + 2.0 * terms.rounding) + terms.lost;
    const double lower = log_weight + query.constant - query.kappa * far * far;
    const double lower_slack = rounding * std::fabs(lower);
    floor = std::max(floor, lower - query.cut - slack - lower_slack);
    int64_t count = 0;
    for (int64_t r = 0; r < rows; ++r) {
        // Written so that a NaN bound lets the row through.
        positions_[count] = r;
        count += !(upper_[r] < floor);
    }
    chosen_.count = count;
    if (count == 0) return;
    for (int64_t s = 0; s < count; ++s) {
        const int64_t r = positions_[s];
        chosen_.rows[s] = tile_.rows()[r];
        chosen_.norms[s] = tile_.norms()[r];
        candidate_log_weights_[s] = tile_.log_weights()[r];
        candidate_products_[s] = products_[r];
    }
    if (query.by_differences) {
        for (int64_t s = 0; s < count; ++s) {
            const double excess =
                kernels_.excess(chosen_.rows[s], query.anchor, point.x, point.row_scale, features_);
            chosen_.logits[s] = candidate_log_weights_[s] - query.kappa * excess;
            chosen_.best = std::max(chosen_.best, chosen_.logits[s]);
        }
        return;
    }
    // The digits that are missing.
    const int missing = query.digits - planes_used_;
    int64_t* const room =
        plane_products_.data() + queries_->count() * kQueryDigits * tile_.capacity();
    const int8_t* columns[kQueryDigits];
    int64_t* outs[kQueryDigits];
    const int64_t* sources[kQueryDigits + 1] = {candidate_products_.data()};
    for (int j = 0; j < missing; ++j) {
        columns[j] = point.digits[planes_used_ + j];
        outs[j] = room + j * tile_.capacity();
        sources[j + 1] = outs[j];
    }
    kernels_.products(chosen_.rows, count, columns, missing, features_, nullptr, outs);
    kernels_.combine(sources, missing + 1, count, candidate_products_.data());
    chosen_.best =
        kernels_.logits(candidate_products_.data(), chosen_.norms, candidate_log_weights_.data(),
                        count, point.correction[query.digits - 1], query.norm_factor,
                        query.product_factor, chosen_.logits);
}

void Worker::take_nearest(const Query& query, int64_t i, Posterior& part) {
    const Point& point = queries_->point_of(query);
    find_bounds(query);
    if (task_.top_k > 0) offer_nearest(query, part);
    double least = INFINITY;
    int64_t found = 0;
    for (int64_t r = 0; r < tile_.count(); ++r) {
        if (r == excluded_ || tile_.log_weights()[r] == -INFINITY) continue;
        const double limit = std::min(least, part.nearest_square) * (1.0 + kTie);
        if (near_[r] > limit) continue;
        double distance = kernels_.distance(tile_.rows()[r], point.x, point.row_scale, features_);
        const double lengths = point.square + point.alpha * point.alpha * tile_.norms()[r];
        if (distance <= kCoincident * lengths) distance = 0.0;
        if (distance > limit) continue;
        least = std::min(least, distance);
        distances_[found] = distance;
        positions_[found++] = r;
    }
    for (int64_t s = 0; s < found; ++s) {
        if (distances_[s] > least * (1.0 + kTie)) continue;
        const double logit = tile_.log_weights()[positions_[s]];
        positions_[chosen_.count] = positions_[s];
        chosen_.logits[chosen_.count++] = logit;
        chosen_.best = std::max(chosen_.best, logit);
    }
    if (chosen_.count > 0) accept(query, i, least, part);
}

void Worker::offer_nearest(const Query& query, Posterior& part) {
    const Point& point = queries_->point_of(query);
    find_bounds(query);
    for (int64_t r = 0; r < tile_.count(); ++r) {
        if (r == excluded_ || tile_.log_weights()[r] == -INFINITY) continue;
        if (near_[r] * (1.0 - 0x1p-40) > part.nearest.reach()) continue;
        part.nearest.offer(
            {kernels_.distance(tile_.rows()[r], point.x, point.row_scale, features_), tile_.id(r)});
    }
}

// Takes the chosen rows: those of a dense tile are weighted, others wait for the segment's end.
void Worker::accept(const Query& query, int64_t i, double nearest_square, Posterior& part) {
    Unit& pending = pending_[i];
    double floor = chosen_.best - query.cut;
    if (!query.sigma_is_zero) {
        floor = std::max(floor, std::max(part.reference, pending.best) - query.margin);
    }
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
    }
    const bool dense = kept * kDenseShare >= tile_.count();
    if (!dense && !query.sigma_is_zero) {
        std::copy_n(chosen_.logits, kept, pending.logits + pending.count);
        std::copy_n(chosen_.norms, kept, pending.norms + pending.count);
        std::copy_n(chosen_.rows, kept, pending.rows + pending.count);
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

// Weighs what sparse tiles left.
void Worker::settle(const Query& query, int64_t i, Posterior& part) {
    Unit& unit = pending_[i];
    const double floor = unit.best - query.cut;
    int64_t kept = 0;
    for (int64_t s = 0; s < unit.count; ++s) {
        unit.logits[kept] = unit.logits[s];
        unit.norms[kept] = unit.norms[s];
        unit.rows[kept] = unit.rows[s];
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
        part.meet(unit.best, unit.nearest_square, query.margin, query.sigma_is_zero);
    if (factors.fresh == 0.0) return sum;
    const double mass =
        static_cast<double>(kernels_.weigh(unit.logits, unit.count, unit.best,
                                           unit.best - query.cut, weights_.data())) /
        kMassUnit;
    // Each weight is off by half a unit at most, each row by the whole range at most.
    int digits = kWeightDigits - 2;
    while (digits < kWeightDigits && !(static_cast<double>(unit.count) * weight_step(digits) <=
                                       query.weight_tolerance * mass)) {
        ++digits;
    }
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
    part.join(sums, unit.best, unit.nearest_square, factors);
    return sum;
}

// The functionals' sums over a unit, in a fixed order of lanes.
Sums Worker::sums_of(const Unit& unit) const {
    double lanes[4][kLanes] = {};
    for (int64_t s = 0; s < unit.count; ++s) {
        const int lane = static_cast<int>(s % kLanes);
        const double weight = weights_[s];
        lanes[0][lane] += weight;
        lanes[1][lane] += weight * weight;
        lanes[2][lane] += weight * (unit.logits[s] - unit.best);
        lanes[3][lane] += weight * unit.norms[s];
    }
    double totals[4] = {};
    for (int part = 0; part < 4; ++part) {
        for (int lane = 0; lane < kLanes; ++lane) totals[part] += lanes[part][lane];
    }
    Sums sums;
    sums.weights = totals[0];
    sums.squares = totals[1];
    sums.logits = totals[2];
    sums.norms = totals[3];
    return sums;
}

}  // namespace diffgen::cpu::u8
