// Mean, logsumexp and what goes with them, in one pass over the rows.

#include "u8/moments.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine.h"
#include "lengths.h"
#include "outputs.h"
#include "partition.h"
#include "pool.h"
#include "posterior_state.h"
#include "query.h"
#include "selection.h"
#include "tile.h"

namespace diffgen::cpu {

namespace {

// The reference follows the best logit when that is so many nats above it: rescaling is rare and
// float32 weights stay far from overflow.
constexpr double kLead = 8.0;
// Additions of a chain of rows to the float32 sums before they are added to the float64 ones.
constexpr int64_t kMostChains = 16;
// From this share of a tile's rows on their sum is formed together with those of other queries.
constexpr double kDense = 0.25;

// The trace has up to four times the features in a far row, so it can drop less than the mean.
constexpr double kFunctionalsMargin = 24.0;

// Features of a partial sum, so that no sum is long.
constexpr int64_t kSumBlock = 128;

// One thread's states and working memory for a block of queries and a chunk of rows.
class Worker {
  public:
    Worker(const Problem& problem, const Kernels& kernels, int64_t queries, int64_t top_k,
           bool in_double)
        : problem_(problem),
          kernels_(kernels),
          top_k_(top_k),
          in_double_(in_double),
          tile_(problem),
          logits_(problem, kernels, queries, tile_.capacity(), in_double),
          states_(queries),
          outlooks_(queries),
          stride_sums_(padded_stride<double>(problem.features)),
          stride_low_(padded_stride<float>(problem.features)),
          stride_weights_(padded_stride<double>(tile_.capacity())),
          sums_(queries * stride_sums_),
          sums_low_(in_double ? 0 : queries * stride_low_),
          weights_(queries * stride_weights_),
          weights_low_(in_double ? 0 : queries * stride_weights_),
          kept_(tile_.capacity()),
          pointers_(tile_.capacity()),
          dense_weights_(queries),
          dense_sums_(queries),
          dense_weights_low_(queries),
          dense_sums_low_(queries) {}

    void start(int64_t queries) {
        for (int64_t i = 0; i < queries; ++i) {
            PosteriorState fresh;
            fresh.sums = sums_.data() + i * stride_sums_;
            fresh.sums_low = in_double_ ? nullptr : sums_low_.data() + i * stride_low_;
            if (top_k_ > 0) fresh.nearest = Nearest(top_k_);
            std::fill_n(fresh.sums, problem_.features, 0.0);
            if (fresh.sums_low) std::fill_n(fresh.sums_low, problem_.features, 0.0f);
            states_[i] = std::move(fresh);
            outlooks_[i] = Outlook();
        }
    }

    void run(const QueryBlock& queries, int64_t begin, int64_t end, StopSign& stop,
             bool on_caller) {
        for (int64_t at = begin; at < end && !stop.check(on_caller); at += tile_.capacity()) {
            tile_.load(at, std::min(end, at + tile_.capacity()), end);
            logits_.form(queries, tile_, outlooks_.data());
            dense_count_ = 0;
            for (int64_t i = 0; i < queries.count(); ++i) {
                if (queries[i].finite) take(queries[i], i);
            }
            add_dense();
        }
        for (int64_t i = 0; i < queries.count(); ++i) states_[i].best = outlooks_[i].best;
    }

    PosteriorState& state(int64_t i) { return states_[i]; }
    const Outlook& outlook(int64_t i) const { return outlooks_[i]; }

    // Refers the logits of another worker's state to this one's anchor.
    void adopt(const Query& query, int64_t i, Worker& other) {
        const Outlook& theirs = other.outlooks_[i];
        const double beyond =
            theirs.anchor ? logits_.excess(query, i, theirs.anchor) : -outlooks_[i].anchor_distance;
        other.states_[i].reference -= query.kappa * beyond;
    }

  private:
    // Adds what the tile holds for one query; a dense weighted sum is left to add_dense.
    void take(const Query& query, int64_t i) {
        PosteriorState& state = states_[i];
        const double best_before = outlooks_[i].best;
        const Survivors& survivors = logits_.select(query, i, tile_, outlooks_[i]);
        state.reference += outlooks_[i].shift;
        if (top_k_ > 0) offer_nearest(query, state);
        if (survivors.count == 0) return;
        if (query.sigma_is_zero) {
            if (outlooks_[i].best > best_before)
                start_nearer(state, best_before, outlooks_[i].best);
            state.reference = 0.0;
        } else if (outlooks_[i].best > state.reference + kLead || state.mass == 0.0) {
            const double largest =
                *std::max_element(survivors.logits, survivors.logits + survivors.count);
            state.refer_to(kernels_, std::max(state.reference, largest), problem_.features);
        }
        weigh(survivors, i);
    }

    // At sigma = 0 rows clearly further than a new nearest one no longer count.
    void start_nearer(PosteriorState& state, double best_before, double best) {
        if (-best_before > -best * (1.0 + kTie)) state.clear_sums(problem_.features);
    }

    void weigh(const Survivors& survivors, int64_t i) {
        PosteriorState& state = states_[i];
        double* const weights = weights_.data() + i * stride_weights_;
        kernels_.exponentials(survivors.logits, survivors.count, state.reference, -INFINITY,
                              kept_.data());
        for (int64_t s = 0; s < survivors.count; ++s) {
            const double weight = kept_[s];
            state.mass += weight;
            state.mass_squares += weight * weight;
            if (weight > 0.0) {
                state.mass_logits += weight * (survivors.logits[s] - state.reference);
            }
            state.mass_norms += weight * tile_.norm(survivors.rows[s]);
            const double bound =
                survivors.error_slope * tile_.length(survivors.rows[s]) + survivors.error_floor;
            state.mass_errors += weight * bound * bound;
        }
        const double share =
            static_cast<double>(survivors.count) / static_cast<double>(tile_.count());
        if (share < kDense) {
            for (int64_t s = 0; s < survivors.count; ++s) {
                pointers_[s] = tile_.rows()[survivors.rows[s]];
            }
            const double* const one = kept_.data();
            logits_.kernels().accumulate_f64(pointers_.data(), survivors.count, &one, 1,
                                             problem_.features, &state.sums);
            return;
        }
        if (in_double_) {
            std::fill_n(weights, tile_.count(), 0.0);
            for (int64_t s = 0; s < survivors.count; ++s) weights[survivors.rows[s]] = kept_[s];
            dense_weights_[dense_count_] = weights;
            dense_sums_[dense_count_] = state.sums;
        } else {
            float* const low = weights_low_.data() + i * stride_weights_;
            std::fill_n(low, tile_.count(), 0.0f);
            for (int64_t s = 0; s < survivors.count; ++s) {
                low[survivors.rows[s]] = static_cast<float>(kept_[s]);
            }
            const int64_t chains = (tile_.count() + kSumChain - 1) / kSumChain;
            if (state.chains + chains > kMostChains) state.flush(kernels_, problem_.features);
            state.chains += chains;
            dense_weights_low_[dense_count_] = low;
            dense_sums_low_[dense_count_] = state.sums_low;
        }
        ++dense_count_;
    }

    void add_dense() {
        if (dense_count_ == 0) return;
        if (in_double_) {
            logits_.kernels().accumulate_f64(tile_.rows(), tile_.count(), dense_weights_.data(),
                                             dense_count_, problem_.features, dense_sums_.data());
        } else {
            logits_.kernels().accumulate_f32(tile_.rows(), tile_.count(), dense_weights_low_.data(),
                                             dense_count_, problem_.features,
                                             dense_sums_low_.data());
        }
    }

    void offer_nearest(const Query& query, PosteriorState& state) {
        const double* const distances = logits_.distances();
        for (int64_t r = 0; r < tile_.count(); ++r) {
            if (tile_.id(r) == query.exclude || tile_.log_weight(r) == -INFINITY) continue;
            if (distances[r] - logits_.distance_error() > state.nearest.reach()) continue;
            state.nearest.offer({logits_.exact_distance(query, tile_, r), tile_.id(r)});
        }
    }

    const Problem& problem_;
    const Kernels& kernels_;
    int64_t top_k_;
    bool in_double_;
    RowTile tile_;
    TileLogits logits_;
    std::vector<PosteriorState> states_;
    Buffer<Outlook> outlooks_;
    int64_t stride_sums_;
    int64_t stride_low_;
    int64_t stride_weights_;
    Buffer<double> sums_;
    Buffer<float> sums_low_;
    Buffer<double> weights_;
    Buffer<float> weights_low_;
    Buffer<double> kept_;
    Buffer<const void*> pointers_;
    Buffer<const double*> dense_weights_;
    Buffer<double*> dense_sums_;
    Buffer<const float*> dense_weights_low_;
    Buffer<float*> dense_sums_low_;
    int64_t dense_count_ = 0;
};

void write(const Problem& problem, const MomentsOutput& output, int64_t b, const Query& query,
           PosteriorState& state, double left_out) {
    const double factor = problem.scale / state.mass;
    const double origin = problem.origin();
    double about_origin = 0.0;
    for (int64_t first = 0; first < problem.features; first += kSumBlock) {
        const int64_t last = std::min(problem.features, first + kSumBlock);
        double part = 0.0;
        for (int64_t k = first; k < last; ++k) {
            const double offset = factor * state.sums[k];
            part += offset * offset;
            store_mean(output, b * problem.features + k, origin + offset);
        }
        about_origin += part;
    }
    const double log_mass = std::log(state.mass);
    const bool apart = query.sigma_is_zero && state.best < 0.0;
    output.logsumexp[b] = apart ? -INFINITY : state.reference + log_mass - query.kappa * left_out;
    if (output.functionals) {
        double* const functionals = output.functionals + 3 * b;
        functionals[0] = std::max(0.0, log_mass - state.mass_logits / state.mass);
        functionals[1] = state.mass * state.mass / state.mass_squares;
        functionals[2] = std::max(0.0, state.mass_norms / state.mass - about_origin);
    }
    write_nearest(output, b, state.nearest);
}

// A call under way: tasks are (block, chunk) pairs of one wave.
struct Wave {
    const Partition& cut;
    StopSign& stop;
    std::vector<QueryBlock> blocks;
    std::vector<Worker> workers;  // (blocks, chunks)

    static void run(void* context, int64_t task, bool on_caller) {
        Wave& wave = *static_cast<Wave*>(context);
        const int64_t block = task / wave.cut.chunks;
        const int64_t chunk = task % wave.cut.chunks;
        wave.workers[task].run(wave.blocks[block], wave.cut.chunk_begin(chunk),
                               wave.cut.chunk_begin(chunk + 1), wave.stop, on_caller);
    }
};

// States of one query over all chunks, merged in the order of the rows. `left_out` becomes the
// squared distance that their logits leave out.
PosteriorState& merge(const Kernels& kernels, const Query& query, Worker* workers, int64_t chunks,
                      int64_t i, int64_t features, double& left_out) {
    PosteriorState& first = workers[0].state(i);
    first.flush(kernels, features);
    Worker* const anchored = std::find_if(workers, workers + chunks, [i](const Worker& worker) {
        return worker.outlook(i).anchor != nullptr;
    });
    if (anchored != workers + chunks) {
        for (Worker* worker = workers; worker != workers + chunks; ++worker) {
            if (worker != anchored) anchored->adopt(query, i, *worker);
        }
        left_out = anchored->outlook(i).anchor_distance;
    }
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
        PosteriorState& other = workers[chunk].state(i);
        if (query.sigma_is_zero) {
            const double mine = -first.best;
            const double theirs = -other.best;
            if (theirs > mine * (1.0 + kTie)) other.clear_sums(features);
            if (mine > theirs * (1.0 + kTie)) first.clear_sums(features);
        }
        first.absorb(kernels, other, features);
    }
    return first;
}

// Runs the problem; queries whose bound is over their tolerance in the end go to `unsettled`.
Outcome run(const Problem& problem, const MomentsOutput& output, const Kernels& kernels,
            int threads, StopSign& stop, bool careful, std::vector<int64_t>& unsettled) {
    // The trace is a small difference of large sums, float64 queries are promised 1e-9, and whoever
    // takes the mean in float64 divides by sigma.
    const bool functionals = output.functionals != nullptr;
    const bool in_double = functionals || problem.query_is_double || output.mean_is_double;
    const Demands demands{careful, in_double, functionals ? kFunctionalsMargin : 0.0,
                          lengths_of(problem).typical};
    const Partition cut = partition(problem, RowTile(problem).capacity(), threads);
    Wave wave{cut, stop, {}, {}};
    for (int64_t i = 0; i < std::min(cut.blocks_at_once, cut.blocks) * cut.chunks; ++i) {
        wave.workers.emplace_back(problem, kernels, cut.block, output.top_k, in_double);
    }
    Outcome outcome;
    for (int64_t first = 0; first < cut.blocks; first += cut.blocks_at_once) {
        const int64_t last = std::min(cut.blocks, first + cut.blocks_at_once);
        wave.blocks.clear();
        for (int64_t block = first; block < last; ++block) {
            const int64_t begin = block * cut.block;
            wave.blocks.emplace_back(problem, kernels, begin,
                                     std::min(problem.batch, begin + cut.block), demands);
        }
        const int64_t tasks = (last - first) * cut.chunks;
        for (int64_t task = 0; task < tasks; ++task) {
            wave.workers[task].start(wave.blocks[task / cut.chunks].count());
        }
        run_tasks(tasks, threads, stop, &wave, Wave::run);
        if (stop.stopped()) return {Status::cancelled, -1, 0};
        for (int64_t block = first; block < last; ++block) {
            const QueryBlock& queries = wave.blocks[block - first];
            Worker* const workers = &wave.workers[(block - first) * cut.chunks];
            for (int64_t i = 0; i < queries.count(); ++i) {
                const int64_t b = block * cut.block + i;
                if (!queries[i].finite) {
                    write_nothing(problem, output, b);
                    continue;
                }
                double left_out = 0.0;
                PosteriorState& state =
                    merge(kernels, queries[i], workers, cut.chunks, i, problem.features, left_out);
                const double tolerance = queries[i].tolerance;
                if (state.mass_errors > tolerance * tolerance * state.mass && !careful) {
                    unsettled.push_back(b);
                } else if (state.mass > 0.0) {
                    write(problem, output, b, queries[i], state, left_out);
                    const int64_t eligible = state.nearest.count();
                    if (eligible < output.top_k && outcome.status == Status::ok) {
                        outcome = {Status::too_few_eligible, b, eligible};
                    }
                } else {
                    write_nothing(problem, output, b);
                    if (outcome.status == Status::ok) outcome = {Status::nothing_eligible, b, 0};
                }
            }
        }
    }
    return outcome;
}

}  // namespace

Outcome moments(const Problem& problem, const MomentsOutput& output, const Kernels& kernels,
                const Control& control) {
    if (problem.storage == Storage::u8) return u8::moments(problem, output, kernels.bytes, control);
    StopSign stop(control);
    std::vector<int64_t> unsettled;
    const Outcome outcome = run(problem, output, kernels, control.threads, stop, false, unsettled);
    if (outcome.status == Status::cancelled || unsettled.empty()) return outcome;
    // The weights are on rows longer than the typical one.
    Selection selection(problem, output, unsettled);
    const Outcome again = run(selection.problem(), selection.output(), kernels, control.threads,
                              stop, true, unsettled);
    if (again.status == Status::cancelled) return again;
    selection.store();
    if (outcome.status != Status::ok || again.status == Status::ok) return outcome;
    return {again.status, selection.original(again.query), again.eligible};
}

}  // namespace diffgen::cpu
