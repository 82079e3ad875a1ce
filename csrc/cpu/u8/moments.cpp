#include "moments.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "../outputs.h"
#include "../pool.h"
#include "../selection.h"
#include "relay.h"
#include "worker.h"

namespace diffgen::cpu::u8 {

namespace {

// Queries that share one pass over the data.
constexpr int64_t kQueriesAtOnce = 64;
// Under so many products a second thread costs more than it does.
constexpr int64_t kProductsForThreads = 1'000'000;
// Pieces of work for each thread, where there are queries enough.
constexpr int64_t kItemsPerThread = 8;

// How a call is cut: items are (block of queries, segment) pairs of one wave.
struct Cut {
    int threads;
    int64_t block;  // queries of a block
    int64_t blocks;
    int64_t blocks_at_once;
};

Cut cut_of(const Problem& problem, int64_t segments, int threads) {
    Cut cut{};
    const int64_t rows = problem.rows ? problem.row_count : problem.count;
    const int64_t batch = std::max<int64_t>(problem.batch, 1);
    cut.threads = rows * problem.features * batch < kProductsForThreads ? 1 : std::max(threads, 1);
    const int64_t wanted = cut.threads == 1 ? 1 : kItemsPerThread * cut.threads;
    const int64_t parts = (wanted + segments - 1) / std::max<int64_t>(segments, 1);
    const int64_t least =
        std::max((batch + kQueriesAtOnce - 1) / kQueriesAtOnce, std::min(batch, parts));
    cut.block = (batch + least - 1) / least;
    cut.blocks = (problem.batch + cut.block - 1) / cut.block;
    cut.blocks_at_once = std::clamp<int64_t>(parts, 1, std::max<int64_t>(cut.blocks, 1));
    return cut;
}

void write(const Problem& problem, const MomentsOutput& output, int64_t b, const Query& query,
           Posterior& total) {
    const double factor = problem.scale / total.sums.quantised;
    const double origin = problem.origin();
    double about_origin = 0.0;
    for (int64_t begin = 0; begin < problem.features; begin += kChain) {
        double lanes[kLanes] = {};
        const int64_t end = std::min(problem.features, begin + kChain);
        for (int64_t k = begin; k < end; ++k) {
            const double offset = factor * total.mean[k];
            lanes[k % kLanes] += offset * offset;
            store_mean(output, b * problem.features + k, origin + offset);
        }
        about_origin += sum_lanes(lanes);
    }
    const Sums& sums = total.sums;
    const bool apart = query.sigma_is_zero && total.nearest_square > 0.0;
    output.logsumexp[b] =
        apart ? -INFINITY : (total.reference - query.constant) + fixed_log(sums.mass);
    if (output.functionals) {
        double* const functionals = output.functionals + 3 * b;
        functionals[0] = std::max(0.0, fixed_log(sums.weights) - sums.logits / sums.weights);
        functionals[1] = sums.weights * sums.weights / sums.squares;
        functionals[2] = std::max(0.0, sums.norms / sums.weights - about_origin);
    }
    write_nearest(output, b, total.nearest);
}

// Some blocks of queries against all segments.
class Wave {
  public:
    Wave(const Task& task, StopSign& stop, std::vector<QueryBlock>& blocks,
         std::vector<Slot>& totals, std::vector<Slot>& rooms, std::vector<Worker>& workers)
        : task_(task),
          stop_(stop),
          blocks_(blocks),
          totals_(totals),
          workers_(workers),
          known_(blocks.size() * kQueriesAtOnce),
          relay_(static_cast<int64_t>(blocks.size()) * task.segments.count(), rooms) {}

    void run(int threads) {
        for (std::atomic<double>& known : known_) known.store(-INFINITY);
        for (Worker& worker : workers_) worker.forget();
        run_tasks(threads, threads, stop_, this, work);
    }

  private:
    static void work(void* context, int64_t thread, bool on_caller) {
        static_cast<Wave*>(context)->work(thread, on_caller);
    }

    void work(int64_t thread, bool on_caller) {
        const int64_t segments = task_.segments.count();
        int64_t item = 0;
        Slot* slot = nullptr;
        while (relay_.take(item, slot, [this] { return stop_.stopped(); })) {
            const int64_t block = item / segments;
            workers_[thread].run(blocks_[block], item % segments,
                                 known_.data() + block * kQueriesAtOnce, slot->parts.data(), stop_,
                                 on_caller);
            if (stop_.stopped()) {
                relay_.drop(slot);
                return;
            }
            relay_.give(item, slot, [this, segments](int64_t done, Slot& part) {
                merge(done / segments, part);
            });
        }
    }

    void merge(int64_t block, Slot& part) {
        const QueryBlock& queries = blocks_[block];
        for (int64_t i = 0; i < queries.count(); ++i) {
            Posterior& total = totals_[block].parts[i];
            total.absorb(task_.kernels, part.parts[i], task_.problem.features, queries[i].margin,
                         queries[i].sigma_is_zero);
            known_[block * kQueriesAtOnce + i].store(total.reference, std::memory_order_relaxed);
        }
    }

    const Task& task_;
    StopSign& stop_;
    std::vector<QueryBlock>& blocks_;
    std::vector<Slot>& totals_;
    std::vector<Worker>& workers_;
    // References that the segments merged so far reach, for each query of each block.
    std::vector<std::atomic<double>> known_;
    Relay relay_;
};

// A nearest row for each query whose logits are decided by differences; found, with the lowest id
// among the nearest, in a pass of its own. False when the call was stopped.
bool find_anchors(const Problem& problem, const Kernels& kernels, const Control& control,
                  int64_t first, QueryBlock& queries) {
    std::vector<int64_t> chosen;
    for (int64_t i = 0; i < queries.count(); ++i) {
        const Query& query = queries[i];
        if (query.finite && query.by_differences && !query.sigma_is_zero) {
            chosen.push_back(first + i);
        }
    }
    if (chosen.empty()) return true;
    const MomentsOutput wanted{nullptr, false, nullptr, nullptr, 1, nullptr, nullptr};
    Selection selection(problem, wanted, chosen);
    const std::vector<double> zeros(chosen.size());
    Problem nearest = selection.problem();
    nearest.sigma = zeros.data();
    const MomentsOutput found = selection.output();
    if (moments(nearest, found, kernels, control).status == Status::cancelled) return false;
    for (size_t i = 0; i < chosen.size(); ++i) {
        const int64_t id = std::max<int64_t>(found.top_indices[i], 0);
        queries.set_anchor(kernels, chosen[i] - first,
                           static_cast<const uint8_t*>(problem.data) + id * problem.features);
    }
    return true;
}

}  // namespace

Outcome moments(const Problem& problem, const MomentsOutput& output, const Kernels& kernels,
                const Control& control) {
    const Segments segments(problem);
    const Task task{problem,
                    kernels,
                    segments,
                    output.top_k,
                    output.functionals != nullptr,
                    control.screening_digits};
    // Whoever takes the mean in float64 divides by sigma.
    const Demands demands{task.functionals, output.mean_is_double || problem.query_is_double};
    const Lengths lengths = lengths_of(problem);
    const Cut cut = cut_of(problem, segments.count(), control.threads);
    StopSign stop(control);
    std::vector<Worker> workers;
    std::vector<Slot> rooms;
    std::vector<Slot> totals;
    for (int i = 0; i < cut.threads; ++i) workers.emplace_back(task, cut.block);
    const int64_t room_count = cut.threads == 1 ? 1 : cut.threads + 2;
    for (int64_t i = 0; i < room_count; ++i) {
        rooms.emplace_back(cut.block, problem.features, output.top_k);
    }
    for (int64_t i = 0; i < cut.blocks_at_once; ++i) {
        totals.emplace_back(cut.block, problem.features, output.top_k);
    }
    Outcome outcome;
    std::vector<QueryBlock> blocks;
    for (int64_t first = 0; first < cut.blocks; first += cut.blocks_at_once) {
        const int64_t last = std::min(cut.blocks, first + cut.blocks_at_once);
        blocks.clear();
        for (int64_t block = first; block < last; ++block) {
            const int64_t begin = block * cut.block;
            const int64_t end = std::min(problem.batch, begin + cut.block);
            blocks.emplace_back(problem, kernels, begin, end, demands, lengths);
            if (!find_anchors(problem, kernels, control, begin, blocks.back())) {
                return {Status::cancelled, -1, 0};
            }
            for (Posterior& total : totals[block - first].parts) {
                total.clear();
                total.nearest.clear();
            }
        }
        Wave(task, stop, blocks, totals, rooms, workers).run(cut.threads);
        if (stop.stopped()) return {Status::cancelled, -1, 0};
        for (int64_t block = first; block < last; ++block) {
            const QueryBlock& queries = blocks[block - first];
            for (int64_t i = 0; i < queries.count(); ++i) {
                const int64_t b = block * cut.block + i;
                Posterior& total = totals[block - first].parts[i];
                if (!queries[i].finite) {
                    write_nothing(problem, output, b);
                } else if (total.empty()) {
                    write_nothing(problem, output, b);
                    if (outcome.status == Status::ok) outcome = {Status::nothing_eligible, b, 0};
                } else {
                    write(problem, output, b, queries[i], total);
                    const int64_t eligible = total.nearest.count();
                    if (eligible < output.top_k && outcome.status == Status::ok) {
                        outcome = {Status::too_few_eligible, b, eligible};
                    }
                }
            }
        }
    }
    return outcome;
}

}  // namespace diffgen::cpu::u8
