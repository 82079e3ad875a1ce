// What each query makes of each segment: which rows count, in which units, with which weights. One
// block for each pair; only the short chain over units is sequential.
#pragma once

#include "decide_rows.cuh"
#include "screen.cuh"

namespace diffgen::cuda {

namespace {

// The best logit of each tile, and how many rows are within the cut of it.
DIFFGEN_DEVICE void count_tiles(const Call& call, const QueryState& state, const Pair& pair,
                                const DecideRoom& room, const OwnRows& logits) {
    double best = -INFINITY;
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kEach; ++i) best = larger(best, logits[i]);
    put_largest(call, room.best, best);
    sync_threads();
    if (thread_index() < tiles_of(call, pair)) gather_tile(call, room.best, thread_index());
    sync_threads();
    int32_t kept = 0;
    if (own_row() < pair.count) {
        const double least = room.best.tiles[own_tile(call)] - state.query.cut;
        DIFFGEN_UNROLL_ALL
        for (int i = 0; i < kEach; ++i) kept += logits[i] >= least;
    }
    put_sum(call, room.chunk_count, kept);
    sync_threads();
    if (thread_index() < tiles_of(call, pair)) {
        const int each = chunks_each(call);
        int32_t rows = 0;
        for (int c = thread_index() * each; c < (thread_index() + 1) * each; ++c) {
            rows += room.chunk_count[c];
        }
        room.tile_kept[thread_index()] = rows;
    }
    sync_threads();
}

// One thread groups the tiles: a dense one is a unit by itself, others are one together until a
// dense one comes, and one whose best is out of reach of those before it is none.
DIFFGEN_DEVICE void group_tiles(const Call& call, const QueryState& state, const Pair& pair,
                                const DecideRoom& room) {
    const Query& query = state.query;
    int units = 0;
    int open = -1;
    double run = -INFINITY;
    for (int t = 0; t < tiles_of(call, pair); ++t) {
        const double best = room.best.tiles[t];
        room.tile_unit[t] = -1;
        if (best == -INFINITY) continue;
        if (!query.sigma_is_zero && best < run - query.margin) continue;
        run = larger(run, best);
        const int64_t rows = pair.count - int64_t{t} * call.tile;
        const bool dense =
            query.sigma_is_zero || is_dense(room.tile_kept[t], rows < call.tile ? rows : call.tile);
        int unit = open;
        if (dense || open < 0) {
            unit = units++;
            room.unit_first[unit] = t;
            room.unit_best[unit] = best;
            room.unit_square[unit] = query.sigma_is_zero ? room.squares[t] : INFINITY;
        } else {
            room.unit_best[unit] = larger(room.unit_best[unit], best);
        }
        room.unit_last[unit] = t;
        room.tile_unit[t] = unit;
        open = dense ? -1 : unit;
    }
    room.unit_total[0] = units;
}

// The unit of a thread's rows, -1 for none.
DIFFGEN_DEVICE int own_unit(const Call& call, const Pair& pair, const DecideRoom& room) {
    return own_row() < pair.count ? static_cast<int>(room.tile_unit[own_tile(call)]) : -1;
}

// Sums over the rows of a unit, by one thread, of what the chunks hold: nothing where a tile
// between its tiles is of no unit.
template <typename T>
DIFFGEN_DEVICE T gather_unit(const Call& call, const DecideRoom& room, Shared<T> chunks, int unit) {
    const int each = chunks_each(call);
    T total = 0;
    for (int t = room.unit_first[unit]; t <= room.unit_last[unit]; ++t) {
        for (int c = t * each; c < (t + 1) * each; ++c) total += chunks[c];
    }
    return total;
}

// Weights of a thread's rows, and each unit's mass, count and digits.
DIFFGEN_DEVICE void weigh_rows(const Call& call, const QueryState& state, const Pair& pair,
                               const DecideRoom& room, const OwnRows& logits, OwnRows& weights) {
    const int own = own_unit(call, pair, room);
    const double best = own >= 0 ? room.unit_best[own] : 0.0;
    int32_t counts = 0;
    int64_t own_mass = 0;
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kEach; ++i) {
        weights[i] = 0.0;
        if (own < 0 || !(logits[i] >= best - state.query.cut)) continue;
        ++counts;
        weights[i] = fixed_exp(logits[i] - best);
        own_mass += fixed_round(weights[i] * kMassUnit);
    }
    put_sum(call, room.chunk_whole, own_mass);
    put_sum(call, room.chunk_count, counts);
    sync_threads();
    if (thread_index() < room.unit_total[0]) {
        const int unit = thread_index();
        const int64_t mass = gather_unit(call, room, room.chunk_whole, unit);
        const int32_t rows = gather_unit(call, room, room.chunk_count, unit);
        room.unit_mass[unit] = mass;
        room.unit_digits[unit] = weight_digits(rows, static_cast<double>(mass) / kMassUnit,
                                               state.query.weight_tolerance);
    }
    sync_threads();
}

// The weights as integers: their digits, their sums and the rows where they are not zero.
DIFFGEN_DEVICE void write_weights(const Call& call, const Pair& pair, const DecideRoom& room,
                                  const OwnRows& weights) {
    const int own = own_unit(call, pair, room);
    const double unit_size = own >= 0 ? ldexp(kTopDigit, 8 * (room.unit_digits[own] - 1)) : 0.0;
    uint32_t digits[kWeightDigits] = {};  // of a thread's rows, a byte each
    uint32_t weighs = 0;
    int64_t whole = 0;
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kEach; ++i) {
        int64_t z = fixed_round(weights[i] * unit_size);
        weighs |= static_cast<uint32_t>(z != 0) << i;
        whole += z;
        DIFFGEN_UNROLL_ALL
        for (int j = 0; j < kWeightDigits; ++j) {
            digits[j] |= static_cast<uint32_t>(static_cast<uint8_t>(take_digit(z))) << 8 * i;
        }
    }
    int8_t* const out = call.weights + pair.at(call) * (kWeightDigits * kSegmentRows) + own_row();
    DIFFGEN_UNROLL_ALL
    for (int j = 0; j < kWeightDigits; ++j) {
        *reinterpret_cast<uint32_t*>(out + j * kSegmentRows) = digits[j];
    }
    put_sum(call, room.chunk_whole, whole);
    put_sum(call, room.chunk_count, static_cast<int32_t>(count_bits(weighs)));
    // Rows of the lanes before this one.
    int place = 0;
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kEach; ++i) {
        place += count_bits(ballot(weighs >> i & 1) & ((1u << lane_index()) - 1));
    }
    if (lane_index() == 31) room.warp_counts[warp_index()] = place + count_bits(weighs);
    sync_threads();
    if (thread_index() < room.unit_total[0]) {
        room.unit_whole[thread_index()] = gather_unit(call, room, room.chunk_whole, thread_index());
    }
    for (int w = 0; w < warp_index(); ++w) place += room.warp_counts[w];
    uint16_t* const list = call.lists + pair.at(call) * kSegmentRows;
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kEach; ++i) {
        if ((weighs >> i & 1) == 0) continue;
        list[place++] = static_cast<uint16_t>(own_row(i));
    }
    sync_threads();
}

// One thread merges the units into the query's posterior over the segment.
DIFFGEN_DEVICE Part merge_units(const Call& call, const QueryState& state, const Pair& pair,
                                const DecideRoom& room) {
    const Query& query = state.query;
    UnitRecord* const records = call.units + pair.at(call) * call.tiles;
    Part part;
    int chunk = 0;
    for (int unit = 0; unit < room.unit_total[0]; ++unit) {
        const double best = room.unit_best[unit];
        const double square = room.unit_square[unit];
        const int digits = room.unit_digits[unit];
        const double step = weight_step(digits);
        const Factors factors = meet(part.state, best, square, query.margin, query.sigma_is_zero);
        Sums sums;
        sums.quantised = static_cast<double>(static_cast<int64_t>(room.unit_whole[unit])) * step;
        sums.mass = static_cast<double>(static_cast<int64_t>(room.unit_mass[unit])) / kMassUnit;
        join(part.state, sums, best, square, factors);
        const int end = (room.unit_last[unit] + 1) << call.tile_shift;
        for (; chunk < end >> chunk_shift(call); ++chunk) part.listed += room.chunk_count[chunk];
        const int rows = static_cast<int>((pair.count + 31) / 32 * 32);
        records[unit] = {factors.old, factors.fresh * step, end < rows ? end : rows, part.listed};
        part.digits = digits > part.digits ? digits : part.digits;
    }
    part.units = room.unit_total[0];
    return part;
}

template <bool Aligned>
DIFFGEN_KERNEL(kTileThreads, 4)
decide_segments(Call call) {
    const Pair pair = pair_of(call, block_index());
    const QueryState& state = call.queries[pair.b];
    if (!state.query.finite || pair.count == 0) {
        if (thread_index() == 0) call.parts[pair.at(call)] = Part();
        return;
    }
    const DecideRoom room = decide_room(call);
    OwnRows logits;
    if (state.query.sigma_is_zero) {
        decide_nearest(call, state, pair, room, logits);
    } else if (is_screened(state)) {
        decide_left<Aligned>(call, state, pair, room, logits);
    } else {
        decide_by_products(call, state, pair, logits,
                           [&](int i) { return is_eligible(call, state, pair, own_row(i)); });
    }
    count_tiles(call, state, pair, room, logits);
    if (thread_index() == 0) group_tiles(call, state, pair, room);
    sync_threads();
    OwnRows weights;
    weigh_rows(call, state, pair, room, logits, weights);
    write_weights(call, pair, room, weights);
    if (thread_index() == 0) call.parts[pair.at(call)] = merge_units(call, state, pair, room);
}

}  // namespace

}  // namespace diffgen::cuda
