// Which rows of a segment the leading digits of a query leave, and which of its other digits are
// multiplied with the segment for them: where many rows are left, a matrix product of all rows
// costs less than products row by row.
#pragma once

#include "prepare.cuh"
#include "tiles.cuh"

namespace diffgen::cuda {

namespace {

constexpr int kScreenThreads = 256;
constexpr int kScreenEach = kSegmentRows / kScreenThreads;
// Rows left to a query, and to all such queries of a segment, from which on the products with all
// rows of the segment are formed.
constexpr int kFewestLeft = 32;
constexpr int kFewestLeftInAll = 512;

// Whether rows are screened, and decided by products of all digits.
DIFFGEN_DEVICE bool is_completed(const QueryState& state) {
    return !state.query.by_differences && state.planes < state.query.digits;
}

DIFFGEN_DEVICE bool is_screened(const QueryState& state) {
    return state.query.finite && !state.query.sigma_is_zero &&
           (state.query.by_differences || state.planes < state.query.digits);
}

// Bytes of shared memory of a block that screens.
inline int64_t screen_bytes(int tile) {
    return 2 * 8 * (chunks_of(tile) + kSegmentRows / tile) + 4 * kWords + 5 * 16;
}

// A block finds the rows of a segment whose upper bound is not under what their tile drops.
DIFFGEN_KERNEL(kScreenThreads, 4) screen_segments(Call call) {
    const Pair pair = pair_of(call, block_index());
    const QueryState& state = call.queries[pair.b];
    if (!is_screened(state) || pair.count == 0) {
        if (thread_index() == 0) call.left_count[pair.at(call)] = 0;
        return;
    }
    SharedMemory memory;
    const int chunks = chunks_of(call.tile);
    const TileRoom lowest{memory.take<double>(chunks), memory.take<double>(call.tiles)};
    const TileRoom likely{memory.take<double>(chunks), memory.take<double>(call.tiles)};
    const Shared<uint32_t> masks = memory.take<uint32_t>(kWords);
    const Query& query = state.query;
    double upper[kScreenEach];
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kScreenEach; ++i) {
        const int r = i * kScreenThreads + thread_index();
        double seeming = -INFINITY;
        double lower = -INFINITY;
        upper[i] = -INFINITY;
        if (is_eligible(call, state, pair, r)) {
            const int64_t id = row_id(call, pair.begin + r);
            const Bound bound = bound_of(state.terms, product_of(call, pair, state.planes, r),
                                         call.problem.norms[id]);
            const double base = log_weight_of(call, id) + query.constant;
            seeming = base - query.kappa * bound.distance;
            upper[i] = base - query.kappa * bound.near;
            lower = floor_of(query, state.terms, call.problem.features, seeming,
                             log_weight_of(call, id))
                        .lowest;
        }
        put_chunk(call, lowest, r, lower);
        put_chunk(call, likely, r, seeming);
    }
    sync_threads();
    if (thread_index() < tiles_of(call, pair)) {
        gather_tile(call, lowest, thread_index());
        gather_tile(call, likely, thread_index());
    }
    sync_threads();
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kScreenEach; ++i) {
        const int r = i * kScreenThreads + thread_index();
        bool left = false;
        if (is_eligible(call, state, pair, r)) {
            const int tile = r >> call.tile_shift;
            // Written so that a NaN bound lets the row through.
            left = likely.tiles[tile] != -INFINITY && !(upper[i] < lowest.tiles[tile]);
        }
        const uint32_t mask = ballot(left);
        if (lane_index() == 0) masks[r / 32] = mask;
    }
    sync_threads();
    if (warp_index() != 0) return;
    const uint32_t mask = masks[lane_index()];
    call.left[pair.at(call) * kWords + lane_index()] = mask;
    const int32_t count = sum_of(count_bits(mask), 32);
    if (lane_index() == 0) call.left_count[pair.at(call)] = count;
}

// A block lists the columns of the other digits whose products with a segment are formed.
DIFFGEN_KERNEL(kListThreads, 2) list_rest(Call call) {
    const int64_t local = block_index();
    const int64_t batch = call.problem.batch;
    SharedMemory memory;
    const Shared<int32_t> counts = memory.take<int32_t>(kListThreads / 32);
    const int32_t fewest = call.rest == 1 ? 1 : kFewestLeft;
    int32_t left = 0;
    for (int64_t b = thread_index(); b < batch; b += kListThreads) {
        const int32_t here = call.left_count[b * call.wave + local];
        if (here >= fewest && is_completed(call.queries[b])) left += here;
    }
    left = sum_of(left, 32);
    if (lane_index() == 0) counts[warp_index()] = left;
    sync_threads();
    int32_t total = 0;
    for (int w = 0; w < kListThreads / 32; ++w) total += counts[w];
    sync_threads();
    const bool any = call.rest < 0 ? total >= kFewestLeftInAll : call.rest == 1;
    for (int64_t b = thread_index(); b < batch; b += kListThreads) {
        const int32_t here = call.left_count[b * call.wave + local];
        call.completed[b * call.wave + local] =
            any && here >= fewest && is_completed(call.queries[b]);
    }
    sync_threads();
    const int64_t columns = kQueryDigits * batch;
    const int32_t count =
        list_wanted(columns, counts, call.rest_columns + local * columns, [&](int64_t column) {
            const int64_t b = column % batch;
            const QueryState& state = call.queries[b];
            const int64_t digit = column / batch;
            return digit >= state.planes && digit < state.query.digits &&
                   call.completed[b * call.wave + local] != 0;
        });
    if (thread_index() == 0) call.rest_count[local] = count;
}

}  // namespace

}  // namespace diffgen::cuda
