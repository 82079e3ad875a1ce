// 8-bit rows that come block by block, from memory or from a file.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../cpu/dispatch.h"
#include "../cpu/lengths.h"
#include "../cpu/u8/pass.h"
#include "../problem.h"

namespace diffgen {

// Goes through the rows of a problem from `first` to `stop`, whole segments in memory of their own
// size each, or in a file that has all rows; `gathered` leaves out every third row.
inline void go_through(cpu::u8::Pass& pass, const Problem& problem, int64_t first, int64_t stop,
                       bool gathered, int file) {
    for (int64_t begin = first; begin < stop; begin += 1024) {
        const int64_t end = std::min(stop, begin + 1024);
        std::vector<int64_t> ids;
        std::vector<uint8_t> data;
        std::vector<double> norms;
        for (int64_t id = begin; id < end; ++id) {
            if (gathered && id % 3 == 2) continue;
            const auto* const row =
                static_cast<const uint8_t*>(problem.data) + id * problem.features;
            ids.push_back(id);
            data.insert(data.end(), row, row + problem.features);
            norms.push_back(problem.norms[id]);
        }
        const cpu::u8::RowBlock block{file < 0 ? data.data() : nullptr,
                                      begin,
                                      gathered ? ids.data() : nullptr,
                                      norms.data(),
                                      nullptr,
                                      static_cast<int64_t>(ids.size()),
                                      file,
                                      begin * problem.features};
        pass.add(block, {2, nullptr, nullptr});
    }
}

// The moments by passes: one, or two parts of which the second keeps its segments.
inline Outcome by_passes(const Problem& problem, const MomentsOutput& output,
                         const cpu::IsaState& isa, int threads, const uint8_t* anchors, int64_t cut,
                         int file) {
    const bool gathered = problem.rows != nullptr;
    const cpu::u8::Extent extent{problem.count, gathered ? problem.row_count : problem.count,
                                 cpu::lengths_of(problem)};
    cpu::u8::PassOptions options{output.top_k, output.functionals != nullptr, true, threads, 1,
                                 false};
    const cpu::u8::Kernels& kernels = isa.kernels->bytes;
    cpu::u8::Pass first(problem, extent, options, kernels, anchors, nullptr);
    go_through(first, problem, 0, cut, gathered, file);
    if (cut == problem.count) return first.finish(output);
    options.keep_segments = true;
    cpu::u8::Pass second(problem, extent, options, kernels, anchors, nullptr);
    go_through(second, problem, cut, problem.count, gathered, file);
    std::vector<double> states(problem.batch * first.state_size());
    first.write_state(states.data());
    second.merge_after(states.data());
    return second.finish(output);
}

}  // namespace diffgen
