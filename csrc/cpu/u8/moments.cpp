#include "moments.h"

#include <algorithm>
#include <vector>

#include "../lengths.h"
#include "../selection.h"
#include "results.h"
#include "wave.h"

namespace diffgen::cpu::u8 {

namespace {

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
    const Task task{kernels, problem.features, output.top_k, output.functionals != nullptr,
                    control.screening_digits};
    // Whoever takes the mean in float64 divides by sigma.
    const Demands demands{task.functionals, output.mean_is_double || problem.query_is_double};
    const Lengths lengths = lengths_of(problem);
    const int64_t eligible = problem.rows ? problem.row_count : problem.count;
    const Rows rows{problem.features, problem.count, eligible, lengths.longest};
    const Cut cut = cut_of(problem, segments.count(), control.threads);
    StopSign stop(control);
    std::vector<Worker> workers;
    std::vector<Slot> rooms;
    std::vector<Slot> totals;
    for (int i = 0; i < cut.threads; ++i) workers.emplace_back(task, cut.block);
    for (int64_t i = 0; i < room_count(cut.threads); ++i) {
        rooms.emplace_back(cut.block, problem.features, output.top_k);
    }
    for (int64_t i = 0; i < cut.blocks_at_once; ++i) {
        totals.emplace_back(cut.block, problem.features, output.top_k);
    }
    Known known(cut.blocks_at_once);
    std::vector<QueryBlock> blocks;
    const Merge merge = [&](int64_t block, int64_t i, int64_t, Posterior& part) {
        const Query& query = blocks[block][i];
        Posterior& total = totals[block].parts[i];
        total.absorb(kernels, part, problem.features, query.margin, query.sigma_is_zero);
        return total.reference;
    };
    Outcome outcome;
    for (int64_t first = 0; first < cut.blocks; first += cut.blocks_at_once) {
        const int64_t last = std::min(cut.blocks, first + cut.blocks_at_once);
        blocks.clear();
        for (int64_t block = first; block < last; ++block) {
            const int64_t begin = block * cut.block;
            const int64_t end = std::min(problem.batch, begin + cut.block);
            blocks.emplace_back(problem, kernels, begin, end, demands, rows, lengths.typical);
            if (!find_anchors(problem, kernels, control, begin, blocks.back())) {
                return {Status::cancelled, -1, 0};
            }
            for (Posterior& total : totals[block - first].parts) {
                total.clear();
                total.nearest.clear();
            }
        }
        known.forget();
        for (Worker& worker : workers) worker.forget();
        Wave(segments, stop, blocks, rooms, workers, known, merge).run(cut.threads);
        if (stop.stopped()) return {Status::cancelled, -1, 0};
        for (int64_t block = first; block < last; ++block) {
            const QueryBlock& queries = blocks[block - first];
            for (int64_t i = 0; i < queries.count(); ++i) {
                write_result(problem, output, block * cut.block + i, queries[i],
                             totals[block - first].parts[i], outcome);
            }
        }
    }
    return outcome;
}

}  // namespace diffgen::cpu::u8
