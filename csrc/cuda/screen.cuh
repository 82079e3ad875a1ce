// Which rows of a segment the leading digits of a query leave, and which of its other digits are
// multiplied with the segment for them: where many rows are left, a matrix product of all rows
// costs less than products row by row.
#pragma once

#include "prepare.cuh"
#include "tiles.cuh"

namespace diffgen::cuda {

namespace {

// Rows left to a query, and to all such queries of a segment, from which on the products with all
// rows of the segment are formed.
constexpr int kFewestLeft = 16;
constexpr int kFewestLeftInAll = 256;
// The latter where the products are bound by reading the rows.
constexpr int kFewestLeftToFew = 32;

DIFFGEN_DEVICE bool is_screened(const QueryState& state) {
    return state.query.finite && !state.query.sigma_is_zero &&
           (state.query.by_differences || state.planes < state.query.digits);
}

// Whether products of the other digits decide rows that a screen leaves.
DIFFGEN_DEVICE bool is_completed(const QueryState& state) {
    return !state.query.by_differences && state.planes < state.query.digits;
}

// Bytes of shared memory of a block that screens: pieces are multiples of 16.
inline int64_t screen_bytes(int tile) {
    return 8 * (chunks_of(tile) + kSegmentRows / tile) + 4 * kTileWarps + 3 * 16;
}

// A block finds the rows of a segment whose upper bound is not under what their tile drops.
DIFFGEN_KERNEL(kTileThreads, 4) screen_segments(Call call) {
    const Pair pair = pair_of(call, block_index());
    const QueryState& state = call.queries[pair.b];
    if (!is_screened(state) || pair.count == 0) {
        if (thread_index() == 0) call.left_count[pair.at(call)] = 0;
        return;
    }
    SharedMemory memory;
    const TileRoom lowest{memory.take<double>(chunks_of(call.tile)),
                          memory.take<double>(call.tiles)};
    const Shared<int32_t> counts = memory.take<int32_t>(kTileWarps);
    const Query& query = state.query;
    double upper[kEach];  // -inf for rows that cannot count
    double highest = -INFINITY;
    int64_t products[kEach] = {};
    if (own_row() < pair.count) own_products(call, pair, state.planes, products);
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kEach; ++i) {
        upper[i] = -INFINITY;
        if (!is_eligible(call, state, pair, own_row(i))) continue;
        const int64_t id = row_id(call, pair.begin + own_row(i));
        const Bound bound = bound_of(state.terms, products[i], call.problem.norms[id]);
        const double log_weight = log_weight_of(call, id);
        const double base = log_weight + query.constant;
        upper[i] = base - query.kappa * bound.near;
        const double seeming = base - query.kappa * bound.distance;
        const Floor floor =
            floor_of(query, state.terms, call.problem.features, seeming, log_weight);
        highest = larger(highest, floor.lowest);
    }
    put_largest(call, lowest, highest);
    sync_threads();
    if (thread_index() < tiles_of(call, pair)) gather_tile(call, lowest, thread_index());
    sync_threads();
    uint32_t left = 0;
    if (own_row() < pair.count) {
        const double dropped = lowest.tiles[own_tile(call)];
        DIFFGEN_UNROLL_ALL
        for (int i = 0; i < kEach; ++i) {
            // Written so that a NaN bound lets the row through.
            const bool passes = upper[i] != -INFINITY && !(upper[i] < dropped);
            left |= static_cast<uint32_t>(passes) << i;
        }
    }
    const int32_t count = sum_of(count_bits(left), 32);
    if (lane_index() == 0) counts[warp_index()] = count;
    // Rows of eight lanes are a word.
    left <<= own_row() % 32;
    for (int mask = 4; mask > 0; mask /= 2) left |= shuffle_xor(left, mask);
    if (own_row() % 32 == 0) call.left[pair.at(call) * kWords + own_row() / 32] = left;
    sync_threads();
    if (thread_index() != 0) return;
    int32_t total = 0;
    for (int w = 0; w < kTileWarps; ++w) total += counts[w];
    call.left_count[pair.at(call)] = total;
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
    const int32_t enough = call.few ? kFewestLeftToFew : kFewestLeftInAll;
    const bool any = call.rest < 0 ? total >= enough : call.rest == 1;
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
