// Which rows of a segment can matter to a query, and their logits: exact products for the rows that
// a screen leaves, or float64 differences.
#pragma once

#include "tiles.cuh"

namespace diffgen::cuda {

namespace {

// A number for each of a thread's rows.
using OwnRows = double[kEach];

// Shared memory of a block that decides.
struct DecideRoom {
    Shared<double> logits;        // (kSegmentRows,) of rows that warps decide, -inf for others
    TileRoom best;                // of the logits
    TileRoom near;                // at sigma = 0: less squared distances
    Shared<double> squares;       // (tiles,) at sigma = 0: to the nearest row up to this tile
    Shared<int64_t> chunk_whole;  // (chunks,)
    Shared<int32_t> chunk_count;  // (chunks,)
    Shared<uint32_t> masks;       // (kWords,) rows
    Shared<int32_t> warp_counts;  // (kTileWarps,)
    Shared<int32_t> tile_kept;    // (tiles,)
    Shared<int32_t> tile_unit;    // (tiles,) the unit that its rows are of, -1 for none
    Shared<double> unit_best;     // (tiles,) as are those that follow
    Shared<double> unit_square;
    Shared<int64_t> unit_mass;
    Shared<int64_t> unit_whole;
    Shared<int32_t> unit_digits;
    Shared<int32_t> unit_first;  // tile
    Shared<int32_t> unit_last;
    Shared<int32_t> unit_total;  // (1,)
};

// Bytes that decide_room takes: pieces are multiples of 16.
inline int64_t decide_bytes(int tile) {
    const int64_t chunks = chunks_of(tile);
    const int64_t tiles = kSegmentRows / tile;
    return 8 * kSegmentRows + 28 * chunks + 76 * tiles + 4 * kWords + 4 * kTileWarps + 20 * 16;
}

DIFFGEN_DEVICE DecideRoom decide_room(const Call& call) {
    const int chunks = chunks_of(call.tile);
    const int tiles = call.tiles;
    SharedMemory memory;
    // The members in their order.
    return {memory.take<double>(kSegmentRows),
            {memory.take<double>(chunks), memory.take<double>(tiles)},
            {memory.take<double>(chunks), memory.take<double>(tiles)},
            memory.take<double>(tiles),
            memory.take<int64_t>(chunks),
            memory.take<int32_t>(chunks),
            memory.take<uint32_t>(kWords),
            memory.take<int32_t>(kTileWarps),
            memory.take<int32_t>(tiles),
            memory.take<int32_t>(tiles),
            memory.take<double>(tiles),
            memory.take<double>(tiles),
            memory.take<int64_t>(tiles),
            memory.take<int64_t>(tiles),
            memory.take<int32_t>(tiles),
            memory.take<int32_t>(tiles),
            memory.take<int32_t>(tiles),
            memory.take<int32_t>(1)};
}

// Calls each(r) with the rows of the masks, by the warps in turn.
template <typename Each>
DIFFGEN_DEVICE void for_masked_rows(const DecideRoom& room, Each each) {
    int turn = 0;
    DIFFGEN_ROLLED
    for (int word = 0; word < kWords; ++word) {
        DIFFGEN_ROLLED
        for (uint32_t mask = room.masks[word]; mask != 0; mask &= mask - 1) {
            if (turn++ % kTileWarps == warp_index()) {
                each(word * 32 + count_bits((mask & (0u - mask)) - 1));
            }
        }
    }
}

// Calls each(r) with the rows of the masks, which are there, and takes a thread's own.
template <typename Each>
DIFFGEN_DEVICE void decide_by_warps(const DecideRoom& room, OwnRows& logits, Each each) {
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kEach; ++i) room.logits[own_row(i)] = -INFINITY;
    sync_threads();
    for_masked_rows(room, [&](int r) {
        const double logit = each(r);
        if (lane_index() == 0) room.logits[r] = logit;
    });
    sync_threads();
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kEach; ++i) logits[i] = room.logits[own_row(i)];
}

// Logits of the rows that are asked for, by products of all digits.
template <typename Asked>
DIFFGEN_DEVICE void decide_by_products(const Call& call, const QueryState& state, const Pair& pair,
                                       OwnRows& logits, Asked asked) {
    const Query& query = state.query;
    int64_t products[kEach] = {};
    if (own_row() < pair.count) own_products(call, pair, query.digits, products);
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kEach; ++i) {
        logits[i] = -INFINITY;
        if (!asked(i)) continue;
        const int64_t id = row_id(call, pair.begin + own_row(i));
        logits[i] = logit_of(products[i], call.problem.norms[id], log_weight_of(call, id), 0,
                             query.norm_factor, query.product_factor);
    }
}

// The product of the digits that did not screen with a row, by a warp.
template <bool Aligned>
DIFFGEN_DEVICE int64_t missing_product(const Call& call, const QueryState& state, const Pair& pair,
                                       const uint8_t* row) {
    int32_t sums[kQueryDigits - 1] = {};
    const int missing = state.query.digits - state.planes;
    for (int64_t k = lane_index() * 16; k < call.problem.features; k += 32 * 16) {
        const Words words = centred(row_words<Aligned>(call, row, k));
        DIFFGEN_UNROLL_ALL
        for (int j = 0; j < kQueryDigits - 1; ++j) {
            if (j >= missing) break;
            const int64_t column = (state.planes + j) * call.problem.batch + pair.b;
            sums[j] = dot16(words, load_global(digits_of(call, column) + k), sums[j]);
        }
    }
    int64_t product = 0;
    DIFFGEN_UNROLL_ALL
    for (int j = 0; j < kQueryDigits - 1; ++j) {
        if (j < missing) product = product * 256 + sums[j];
    }
    return sum_of(product, 32);
}

// What a screened row is worth exactly, by a warp.
template <bool Aligned>
DIFFGEN_DEVICE double exact_logit(const Call& call, const QueryState& state, const Pair& pair,
                                  int r) {
    const Query& query = state.query;
    const int64_t id = row_id(call, pair.begin + r);
    const uint8_t* const row = row_of(call, id);
    const double log_weight = log_weight_of(call, id);
    if (query.by_differences) {
        const double excess =
            excess_over(row, row_of(call, state.anchor), call.x + pair.b * call.problem.features,
                        state.point.row_scale, call.problem.features);
        return log_weight - query.kappa * excess;
    }
    int64_t product = product_of(call, pair, state.planes, r);
    for (int j = state.planes; j < query.digits; ++j) product *= 256;
    product += missing_product<Aligned>(call, state, pair, row);
    return logit_of(product, call.problem.norms[id], log_weight, 0, query.norm_factor,
                    query.product_factor);
}

// Logits of the rows that the screen leaves.
template <bool Aligned>
DIFFGEN_DEVICE void decide_left(const Call& call, const QueryState& state, const Pair& pair,
                                const DecideRoom& room, OwnRows& logits) {
    const uint32_t* const left = call.left + pair.at(call) * kWords;
    if (call.completed[pair.at(call)]) {
        const uint32_t own = left[own_row() / 32] >> own_row() % 32;
        decide_by_products(call, state, pair, logits, [=](int i) { return (own >> i & 1) != 0; });
        return;
    }
    if (thread_index() < kWords) room.masks[thread_index()] = left[thread_index()];
    decide_by_warps(room, logits,
                    [&](int r) { return exact_logit<Aligned>(call, state, pair, r); });
}

// The bits of a thread's rows as parts of words.
DIFFGEN_DEVICE void put_masks(const DecideRoom& room, uint32_t own) {
    own <<= own_row() % 32;
    for (int mask = 32 / kEach / 2; mask > 0; mask /= 2) own |= shuffle_xor(own, mask);
    if (own_row() % 32 == 0) room.masks[own_row() / 32] = own;
}

// At sigma = 0: the logarithms of the weights of a tile's nearest rows, and the tiles' squares.
DIFFGEN_DEVICE void decide_nearest(const Call& call, const QueryState& state, const Pair& pair,
                                   const DecideRoom& room, OwnRows& logits) {
    OwnRows near;
    double least = -INFINITY;
    int64_t products[kEach] = {};
    if (own_row() < pair.count) own_products(call, pair, state.planes, products);
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kEach; ++i) {
        near[i] = INFINITY;
        if (!is_eligible(call, state, pair, own_row(i))) continue;
        const int64_t id = row_id(call, pair.begin + own_row(i));
        if (log_weight_of(call, id) == -INFINITY) continue;
        const Bound bound = bound_of(state.terms, products[i], call.problem.norms[id]);
        near[i] = bound.near;
        least = larger(least, -far_square(state.terms, bound.distance));
    }
    put_largest(call, room.best, least);
    sync_threads();
    if (thread_index() < tiles_of(call, pair)) gather_tile(call, room.best, thread_index());
    sync_threads();
    uint32_t left = 0;
    if (own_row() < pair.count) {
        const double limit = -room.best.tiles[own_tile(call)] * kNearSlack;
        DIFFGEN_UNROLL_ALL
        for (int i = 0; i < kEach; ++i) {
            left |= static_cast<uint32_t>(near[i] != INFINITY && !(near[i] > limit)) << i;
        }
    }
    put_masks(room, left);
    // Less the squared distances, until they are known.
    decide_by_warps(room, logits, [&](int r) {
        const int64_t id = row_id(call, pair.begin + r);
        const double distance =
            distance_to(row_of(call, id), call.x + pair.b * call.problem.features,
                        state.point.row_scale, call.problem.features);
        const double alpha = state.point.alpha;
        const double lengths = state.point.square + alpha * alpha * call.problem.norms[id];
        return distance <= kCoincident * lengths ? -0.0 : -distance;
    });
    double nearest = -INFINITY;
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kEach; ++i) nearest = larger(nearest, logits[i]);
    put_largest(call, room.near, nearest);
    sync_threads();
    if (thread_index() < tiles_of(call, pair)) gather_tile(call, room.near, thread_index());
    sync_threads();
    // Tiles before this one set the limit too.
    if (thread_index() < tiles_of(call, pair)) {
        double square = INFINITY;
        for (int t = 0; t <= thread_index(); ++t) square = smaller(square, -room.near.tiles[t]);
        room.squares[thread_index()] = square;
    }
    sync_threads();
    if (own_row() >= pair.count) return;
    const double limit = room.squares[own_tile(call)] * (1.0 + kTie);
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kEach; ++i) {
        const double distance = -logits[i];
        const bool nearest_of_all = distance < INFINITY && distance <= limit;
        logits[i] =
            nearest_of_all ? log_weight_of(call, row_id(call, pair.begin + own_row(i))) : -INFINITY;
    }
}

}  // namespace

}  // namespace diffgen::cuda
