// How a call is cut into tasks: blocks of queries times chunks of rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../problem.h"

namespace diffgen::cpu {

struct Partition {
    int64_t rows;    // eligible rows
    int64_t chunks;  // of rows, merged in their order
    int64_t block;   // queries of a block
    int64_t blocks;  // of queries
    int64_t blocks_at_once;

    int64_t chunk_begin(int64_t chunk) const { return rows * chunk / chunks; }
};

// Queries that share one pass over the data: their sums take this many rows of memory a thread.
constexpr int64_t kQueriesAtOnce = 64;

inline Partition partition(const Problem& problem, int64_t tile_rows, int threads) {
    Partition cut{};
    cut.rows = problem.rows ? problem.row_count : problem.count;
    const int64_t work = cut.rows * problem.features * std::max<int64_t>(problem.batch, 1);
    // Under a few hundred thousand products a second thread costs more than it does.
    const int64_t workers = work < 400'000 ? 1 : std::max(threads, 1);
    const int64_t tiles = std::max<int64_t>((cut.rows + tile_rows - 1) / tile_rows, 1);
    cut.chunks = std::min(workers, std::max<int64_t>(tiles / 2, 1));
    cut.blocks_at_once = std::max<int64_t>(workers / cut.chunks, 1);
    const int64_t share = (problem.batch + cut.blocks_at_once - 1) / cut.blocks_at_once;
    cut.block = std::clamp<int64_t>(share, 1, kQueriesAtOnce);
    cut.blocks = (problem.batch + cut.block - 1) / cut.block;
    return cut;
}

}  // namespace diffgen::cpu
