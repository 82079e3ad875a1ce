// Which rows of a tile matter to a query, and their logits.

#include <algorithm>
#include <cmath>

#include "worker.h"

namespace diffgen::cpu::u8 {

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

void Worker::find_bounds(const Query& query) {
    if (bounds_known_) return;
    kernels_.bounds(products_.data(), tile_.norms(), tile_.count(),
                    bound_terms(queries_->point_of(query), planes_used_, queries_->rows()),
                    distances_.data(), near_.data());
    bounds_known_ = true;
}

void Worker::screen(const Query& query, int64_t i, const Posterior& part) {
    const Point& point = queries_->point_of(query);
    const int64_t rows = tile_.count();
    const BoundTerms terms = bound_terms(point, planes_used_, queries_->rows());
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
    // A lower bound of the best logit: that of the row that seems best.
    const int64_t nearest =
        std::find(logits_.data(), logits_.data() + rows, best.seeming) - logits_.data();
    if (nearest == rows) return;
    const Floor floor =
        floor_of(query, terms, features_, best.seeming, tile_.log_weights()[nearest]);
    const double run = std::max(part.reference, pending_[i].best);
    if (best.possible < run - query.margin - floor.slack) return;
    int64_t count = 0;
    for (int64_t r = 0; r < rows; ++r) {
        // Written so that a NaN bound lets the row through.
        positions_[count] = r;
        count += !(upper_[r] < floor.lowest);
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

}  // namespace diffgen::cpu::u8
