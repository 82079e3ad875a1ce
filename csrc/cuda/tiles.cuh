// The largest values of a segment's tiles, by the threads that have its rows.
#pragma once

#include "products.cuh"

namespace diffgen::cuda {

namespace {

// A chunk is the rows of a warp's step that are in one tile.
DIFFGEN_HD inline int chunk_rows(int tile) {
    return tile < 32 ? tile : 32;
}

DIFFGEN_HD inline int chunks_of(int tile) {
    return kSegmentRows / chunk_rows(tile);
}

DIFFGEN_DEVICE int chunk_shift(const Call& call) {
    return call.tile_shift < 5 ? call.tile_shift : 5;
}

// Chunks of a tile.
DIFFGEN_DEVICE int chunks_each(const Call& call) {
    return 1 << (call.tile_shift - chunk_shift(call));
}

// Whether a lane is the first of a chunk's.
DIFFGEN_DEVICE bool is_first_of_chunk(const Call& call) {
    return (lane_index() & ((1 << chunk_shift(call)) - 1)) == 0;
}

struct TileRoom {
    Shared<double> chunks;
    Shared<double> tiles;
};

DIFFGEN_DEVICE int tiles_of(const Call& call, const Pair& pair) {
    return static_cast<int>(pair.count + call.tile - 1) >> call.tile_shift;
}

// The largest value of a chunk's rows, by the lanes that have them.
DIFFGEN_DEVICE void put_chunk(const Call& call, const TileRoom& room, int r, double value) {
    value = largest_of(value, 1 << chunk_shift(call));
    if (is_first_of_chunk(call)) room.chunks[r >> chunk_shift(call)] = value;
}

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

}  // namespace

}  // namespace diffgen::cuda
