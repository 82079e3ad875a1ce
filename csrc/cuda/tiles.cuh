// A segment's rows as a block has them, four neighbours a thread, and what they say of its tiles.
#pragma once

#include "products.cuh"

namespace diffgen::cuda {

namespace {

constexpr int kTileThreads = 256;
constexpr int kEach = kSegmentRows / kTileThreads;  // rows of a thread
constexpr int kTileWarps = kTileThreads / 32;

static_assert(kEach == 4 && kFewestTileRows % kEach == 0, "a thread's rows are of one tile");

DIFFGEN_DEVICE int own_row(int i = 0) {
    return thread_index() * kEach + i;
}

// A chunk is the rows of a warp that are in one tile.
DIFFGEN_HD inline int chunks_of(int tile) {
    const int most = 32 * kEach;
    return kSegmentRows / (tile < most ? tile : most);
}

DIFFGEN_DEVICE int chunk_shift(const Call& call) {
    return call.tile_shift < 7 ? call.tile_shift : 7;
}

// Chunks of a tile.
DIFFGEN_DEVICE int chunks_each(const Call& call) {
    return 1 << (call.tile_shift - chunk_shift(call));
}

// Lanes that have a chunk's rows.
DIFFGEN_DEVICE int chunk_lanes(const Call& call) {
    return (1 << chunk_shift(call)) / kEach;
}

DIFFGEN_DEVICE int tiles_of(const Call& call, const Pair& pair) {
    return static_cast<int>(pair.count + call.tile - 1) >> call.tile_shift;
}

DIFFGEN_DEVICE int own_tile(const Call& call) {
    return own_row() >> call.tile_shift;
}

// Writes what the lanes of a chunk agree on.
template <typename T>
DIFFGEN_DEVICE void put_chunk(const Call& call, Shared<T> chunks, T value) {
    if ((lane_index() & (chunk_lanes(call) - 1)) == 0) {
        chunks[own_row() >> chunk_shift(call)] = value;
    }
}

template <typename T>
DIFFGEN_DEVICE void put_sum(const Call& call, Shared<T> chunks, T value) {
    put_chunk(call, chunks, sum_of(value, chunk_lanes(call)));
}

struct TileRoom {
    Shared<double> chunks;
    Shared<double> tiles;
};

DIFFGEN_DEVICE void put_largest(const Call& call, const TileRoom& room, double value) {
    put_chunk(call, room.chunks, largest_of(value, chunk_lanes(call)));
}

// The largest value of a tile, by one thread.
DIFFGEN_DEVICE void gather_tile(const Call& call, const TileRoom& room, int tile) {
    const int each = chunks_each(call);
    double value = -INFINITY;
    for (int c = tile * each; c < (tile + 1) * each; ++c) value = larger(value, room.chunks[c]);
    room.tiles[tile] = value;
}

DIFFGEN_DEVICE bool is_eligible(const Call& call, const QueryState& state, const Pair& pair,
                                int r) {
    return r < pair.count && row_id(call, pair.begin + r) != state.query.exclude;
}

// The products of the leading digits with a thread's rows, of which the first is there.
DIFFGEN_DEVICE void own_products(const Call& call, const Pair& pair, int planes,
                                 int64_t (&products)[kEach]) {
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kEach; ++i) products[i] = 0;
    for (int j = 0; j < planes; ++j) {
        const int64_t column = j * call.problem.batch + pair.b;
        const int32_t* const from =
            call.products + (column * call.wave + pair.local) * kSegmentRows + own_row();
        const Words words = load_global(from);
        DIFFGEN_UNROLL_ALL
        for (int i = 0; i < kEach; ++i) {
            products[i] = products[i] * 256 + static_cast<int32_t>(words.w[i]);
        }
    }
}

}  // namespace

}  // namespace diffgen::cuda
