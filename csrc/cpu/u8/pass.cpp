#include "pass.h"

#include <algorithm>
#include <cstring>

#include "results.h"

namespace diffgen::cpu::u8 {

namespace {

// Pieces of work for each thread in a block of rows, where there are queries enough.
constexpr int64_t kItemsPerThread = 2;
// The most that the rooms take, if more than one query shares them.
constexpr int64_t kRoomBytes = 48 << 20;

// Numbers of a state beside its mean: reference, nearest square, the six sums, and the number of
// nearest rows, which follow with distance and id each.
constexpr int64_t kStateHead = 9;

int64_t queries_of_block(const Problem& problem, const PassOptions& options) {
    const int64_t batch = std::max<int64_t>(problem.batch, 1);
    const int64_t wanted = options.threads == 1 ? 1 : kItemsPerThread * options.threads;
    const int64_t segments = std::max<int64_t>(options.segments_at_once, 1);
    const int64_t parts = (wanted + segments - 1) / segments;
    const int64_t bytes_each = room_count(options.threads) * problem.features * 8;
    const int64_t most =
        std::clamp<int64_t>(kRoomBytes / std::max<int64_t>(bytes_each, 1), 1, kQueriesAtOnce);
    const int64_t least = std::max((batch + most - 1) / most, std::min(batch, parts));
    return (batch + least - 1) / least;
}

Rows rows_of(const Problem& problem, const Extent& extent) {
    return {problem.features, extent.count, extent.eligible, extent.lengths.longest};
}

Demands demands_of(const Problem& problem, const PassOptions& options) {
    return {options.functionals, options.mean_is_double || problem.query_is_double};
}

bool is_undecided(const Query& query) {
    return query.finite && query.by_differences && !query.sigma_is_zero;
}

}  // namespace

void find_undecided(const Problem& problem, const Extent& extent, const PassOptions& options,
                    const Kernels& kernels, bool* undecided) {
    for (int64_t begin = 0; begin < problem.batch; begin += kQueriesAtOnce) {
        const int64_t end = std::min(problem.batch, begin + kQueriesAtOnce);
        const QueryBlock queries(problem, kernels, begin, end, demands_of(problem, options),
                                 rows_of(problem, extent), extent.lengths.typical);
        for (int64_t b = begin; b < end; ++b) undecided[b] = is_undecided(queries[b - begin]);
    }
}

Pass::Kept::Kept(const Posterior& other, int64_t features) : mean(features) {
    static_cast<State&>(part) = other;
    std::copy_n(other.mean, features, mean.data());
    part.mean = mean.data();
}

Pass::Pass(const Problem& problem, const Extent& extent, const PassOptions& options,
           const Kernels& kernels, const uint8_t* anchors, double* squares)
    : problem_(problem),
      kernels_(kernels),
      options_(options),
      task_{kernels, problem.features, options.top_k, options.functionals, 0},
      squares_(squares),
      set_segments_((extent.count + kSegmentRows - 1) / kSegmentRows),
      block_(queries_of_block(problem, options)),
      known_((problem.batch + block_ - 1) / block_),
      kept_(static_cast<size_t>(problem.batch)) {
    for (int64_t begin = 0; begin < problem.batch; begin += block_) {
        const int64_t end = std::min(problem.batch, begin + block_);
        blocks_.emplace_back(problem, kernels, begin, end, demands_of(problem, options),
                             rows_of(problem, extent), extent.lengths.typical);
        totals_.emplace_back(end - begin, problem.features, options.top_k);
        for (int64_t b = begin; anchors && b < end; ++b) {
            if (!is_undecided(query(b))) continue;
            blocks_.back().set_anchor(kernels, b - begin, anchors + b * problem.features);
        }
    }
    for (int i = 0; i < options.threads; ++i) workers_.emplace_back(task_, block_);
    for (int64_t i = 0; i < room_count(options.threads); ++i) {
        rooms_.emplace_back(block_, problem.features, options.top_k);
    }
}

Added Pass::add(const RowBlock& rows, const Control& control) {
    const Segments segments(rows, problem_.features);
    segments_ = &segments;
    StopSign stop(control);
    const Merge merge = [this](int64_t block, int64_t i, int64_t segment, Posterior& part) {
        return this->merge(block, i, segment, part);
    };
    const int64_t products = rows.count * problem_.features * problem_.batch;
    const int most = std::clamp(control.threads, 1, options_.threads);
    const int threads = products < kProductsForThreads ? 1 : most;
    Wave(segments, stop, blocks_, rooms_, workers_, known_, merge).run(threads);
    if (stop.failed()) return Added::unreadable;
    return stop.stopped() ? Added::stopped : Added::all;
}

double Pass::merge(int64_t block, int64_t i, int64_t segment, Posterior& part) {
    if (squares_) {
        const int64_t b = block * block_ + i;
        squares_[b * set_segments_ + segments_->number(segment)] = part.nearest_square;
    }
    if (options_.keep_segments) return keep(block, i, part);
    const Query& query = blocks_[block][i];
    Posterior& total = totals_[block].parts[i];
    total.absorb(kernels_, part, problem_.features, query.margin, query.sigma_is_zero);
    return total.reference;
}

double Pass::keep(int64_t block, int64_t i, const Posterior& part) {
    const Query& query = blocks_[block][i];
    // Holds the nearest rows, and what the merge of the kept parts is sure to reach.
    Posterior& total = totals_[block].parts[i];
    total.nearest.absorb(part.nearest);
    const Factors factors =
        meet(total, part.reference, part.nearest_square, query.margin, query.sigma_is_zero);
    if (factors.fresh != 0.0) {
        kept_[block * block_ + i].emplace_back(part, problem_.features);
        total.reference = std::max(total.reference, part.reference);
        total.nearest_square = std::min(total.nearest_square, part.nearest_square);
    }
    return total.reference;
}

int64_t Pass::state_size() const {
    return kStateHead + problem_.features + 2 * options_.top_k;
}

void Pass::write_state(double* states) {
    const int64_t features = problem_.features;
    for (int64_t b = 0; b < problem_.batch; ++b, states += state_size()) {
        const Posterior& from = total(b);
        const Sums& sums = from.sums;
        const double head[kStateHead] = {
            from.reference, from.nearest_square, sums.quantised,
            sums.mass,      sums.weights,        sums.squares,
            sums.logits,    sums.norms,          static_cast<double>(from.nearest.count())};
        std::copy_n(head, kStateHead, states);
        std::copy_n(from.mean, features, states + kStateHead);
        double* const nearest = states + kStateHead + features;
        std::fill_n(nearest, 2 * options_.top_k, 0.0);
        for (int64_t k = 0; k < from.nearest.count(); ++k) {
            nearest[2 * k] = from.nearest[k].distance;
            nearest[2 * k + 1] = static_cast<double>(from.nearest[k].id);
        }
    }
}

void Pass::load(const double* state, Posterior& posterior) const {
    posterior.reference = state[0];
    posterior.nearest_square = state[1];
    posterior.sums = {state[2], state[3], state[4], state[5], state[6], state[7]};
    std::copy_n(state + kStateHead, problem_.features, posterior.mean);
    posterior.nearest.clear();
    const double* const nearest = state + kStateHead + problem_.features;
    const int64_t count = std::min(static_cast<int64_t>(state[8]), options_.top_k);
    for (int64_t k = 0; k < count; ++k) {
        posterior.nearest.offer({nearest[2 * k], static_cast<int64_t>(nearest[2 * k + 1])});
    }
}

void Pass::read_state(const double* states) {
    for (int64_t b = 0; b < problem_.batch; ++b, states += state_size()) load(states, total(b));
}

void Pass::merge_after(const double* states) {
    const int64_t features = problem_.features;
    Slot room(1, features, options_.top_k);
    Posterior& joined = room.parts[0];
    for (int64_t b = 0; b < problem_.batch; ++b, states += state_size()) {
        const double margin = query(b).margin;
        const bool at_zero = query(b).sigma_is_zero;
        Posterior& own = total(b);
        load(states, joined);
        if (options_.keep_segments) {
            joined.nearest.absorb(own.nearest);
            for (const Kept& kept : kept_[b]) {
                joined.absorb(kernels_, kept.part, features, margin, at_zero);
            }
            kept_[b].clear();
        } else {
            joined.absorb(kernels_, own, features, margin, at_zero);
        }
        static_cast<State&>(own) = joined;
        std::copy_n(joined.mean, features, own.mean);
        std::swap(own.nearest, joined.nearest);
    }
}

int64_t Pass::kept_bytes() const {
    int64_t parts = 0;
    for (const std::deque<Kept>& kept : kept_) parts += static_cast<int64_t>(kept.size());
    return parts * (problem_.features * 8 + static_cast<int64_t>(sizeof(Kept)));
}

Outcome Pass::finish(const MomentsOutput& output) {
    Outcome outcome;
    for (int64_t b = 0; b < problem_.batch; ++b) {
        write_result(problem_, output, b, query(b), total(b), outcome);
    }
    return outcome;
}

}  // namespace diffgen::cpu::u8
