#include "worker.h"

#include <algorithm>
#include <cmath>

namespace diffgen::cpu::u8 {

Worker::Worker(const Task& task, int64_t queries)
    : task_(task),
      kernels_(task.kernels),
      features_(task.features),
      tile_(task.features),
      plan_(queries, task.forced_planes),
      planes_(static_cast<size_t>(queries)),
      plane_products_((queries + 1) * kQueryDigits * tile_.capacity()),
      positions_(tile_.capacity()),
      chosen_logits_(tile_.capacity()),
      chosen_norms_(tile_.capacity()),
      chosen_rows_(tile_.capacity()),
      chosen_places_(tile_.capacity()),
      pending_(static_cast<size_t>(queries)),
      pending_logits_(queries * kMostPending),
      pending_norms_(queries * kMostPending),
      pending_rows_(queries * kMostPending),
      pending_places_(queries * kMostPending),
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
    chosen_.places = chosen_places_.data();
    for (int64_t i = 0; i < queries; ++i) {
        pending_[i].logits = pending_logits_.data() + i * kMostPending;
        pending_[i].norms = pending_norms_.data() + i * kMostPending;
        pending_[i].rows = pending_rows_.data() + i * kMostPending;
        pending_[i].places = pending_places_.data() + i * kMostPending;
    }
}

void Worker::forget() {
    planned_for_ = nullptr;
}

void Worker::run(const QueryBlock& queries, const Segments& segments, int64_t segment,
                 const std::atomic<double>* known, Posterior* parts, StopSign& stop,
                 bool on_caller) {
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
    const int64_t first = segments.begin(segment);
    const int64_t last = segments.begin(segment + 1);
    from_file_ = segments.in_file();
    if (from_file_) {
        if (!waiting_) {
            copies_ = Buffer<uint8_t>(tile_.capacity() * features_);
            waiting_.reset(new uint8_t[static_cast<size_t>(kSegmentRows * features_)]);
        }
        waits_.assign(kSegmentRows, false);
    }
    uint8_t* const copies = from_file_ ? copies_.data() : nullptr;
    for (int64_t at = first; at < last; at += tile_.capacity()) {
        if (stop.check(on_caller)) return;
        const int64_t rows = std::min(tile_.capacity(), last - at);
        if (copies && !segments.read(at, rows, copies)) {
            stop.fail();
            return;
        }
        tile_.load(segments, segment, at, copies);
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

}  // namespace diffgen::cpu::u8
