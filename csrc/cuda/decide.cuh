// What each query makes of each segment: which rows count, in which units, with which weights. One
// block for each pair; only the short chain over units is sequential.
#pragma once

#include "decide_rows.cuh"
#include "screen.cuh"

namespace diffgen::cuda {

namespace {

// How many of a chunk's rows have something, by the lanes that have them.
DIFFGEN_DEVICE void put_count(const Call& call, const DecideRoom& room, int r, bool has) {
    const int shift = chunk_shift(call);
    const uint32_t mask = ballot(has);
    if (!is_first_of_chunk(call)) return;
    const uint32_t chunk = shift == 5 ? ~0u : (1u << (1 << shift)) - 1;
    room.chunk_count[r >> shift] = count_bits(mask >> lane_index() & chunk);
}

// The best logit of each tile, and how many rows are within the cut of it.
DIFFGEN_DEVICE void count_tiles(const Call& call, const QueryState& state, const Pair& pair,
                                const DecideRoom& room) {
    const int each = chunks_each(call);
    DIFFGEN_ROLLED
    for (int r = thread_index(); r < kSegmentRows; r += kDecideThreads) {
        put_chunk(call, room.best, r, room.logits[r]);
    }
    sync_threads();
    if (thread_index() < tiles_of(call, pair)) gather_tile(call, room.best, thread_index());
    sync_threads();
    DIFFGEN_ROLLED
    for (int r = thread_index(); r < kSegmentRows; r += kDecideThreads) {
        bool kept = false;
        if (r < pair.count) {
            kept = room.logits[r] >= room.best.tiles[r >> call.tile_shift] - state.query.cut;
        }
        put_count(call, room, r, kept);
    }
    sync_threads();
    if (thread_index() < tiles_of(call, pair)) {
        int32_t kept = 0;
        for (int c = thread_index() * each; c < (thread_index() + 1) * each; ++c) {
            kept += room.chunk_count[c];
        }
        room.tile_kept[thread_index()] = kept;
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

DIFFGEN_DEVICE int unit_of_row(const Call& call, const Pair& pair, const DecideRoom& room, int r) {
    return r < pair.count ? static_cast<int>(room.tile_unit[r >> call.tile_shift]) : -1;
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

// Weights of this thread's rows, and each unit's mass, count and digits.
DIFFGEN_DEVICE void weigh_rows(const Call& call, const QueryState& state, const Pair& pair,
                               const DecideRoom& room) {
    const int size = 1 << chunk_shift(call);
    DIFFGEN_ROLLED
    for (int r = thread_index(); r < kSegmentRows; r += kDecideThreads) {
        const int unit = unit_of_row(call, pair, room, r);
        double weight = 0.0;
        bool counts = false;
        if (unit >= 0) {
            const double best = room.unit_best[unit];
            const double logit = room.logits[r];
            counts = logit >= best - state.query.cut;
            if (counts) weight = fixed_exp(logit - best);
        }
        const int64_t mass = sum_of(fixed_round(weight * kMassUnit), size);
        room.values[r] = weight;
        put_count(call, room, r, counts);
        if (is_first_of_chunk(call)) room.chunk_whole[r >> chunk_shift(call)] = mass;
    }
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
DIFFGEN_DEVICE void write_weights(const Call& call, const Pair& pair, const DecideRoom& room) {
    const int size = 1 << chunk_shift(call);
    int8_t* const out = call.weights + pair.at(call) * (kWeightDigits * kSegmentRows);
    DIFFGEN_ROLLED
    for (int r = thread_index(); r < kSegmentRows; r += kDecideThreads) {
        const int unit = unit_of_row(call, pair, room, r);
        int64_t z = 0;
        if (unit >= 0) {
            z = fixed_round(room.values[r] * ldexp(kTopDigit, 8 * (room.unit_digits[unit] - 1)));
        }
        const uint32_t mask = ballot(z != 0);
        if (lane_index() == 0) room.masks[r / 32] = mask;
        const int64_t whole = sum_of(z, size);
        if (is_first_of_chunk(call)) room.chunk_whole[r >> chunk_shift(call)] = whole;
        DIFFGEN_UNROLL_ALL
        for (int j = 0; j < kWeightDigits; ++j) out[j * kSegmentRows + r] = take_digit(z);
    }
    sync_threads();
    if (thread_index() < room.unit_total[0]) {
        room.unit_whole[thread_index()] = gather_unit(call, room, room.chunk_whole, thread_index());
    }
    if (thread_index() < kWords) {
        int place = 0;
        DIFFGEN_ROLLED
        for (int w = 0; w < thread_index(); ++w) place += count_bits(room.masks[w]);
        room.places[thread_index()] = place;
    }
    sync_threads();
    uint16_t* const list = call.lists + pair.at(call) * kSegmentRows;
    DIFFGEN_ROLLED
    for (int r = thread_index(); r < kSegmentRows; r += kDecideThreads) {
        const uint32_t mask = room.masks[r / 32];
        if ((mask >> lane_index() & 1) == 0) continue;
        const int place = room.places[r / 32] + count_bits(mask & ((1u << lane_index()) - 1));
        list[place] = static_cast<uint16_t>(r);
    }
    sync_threads();
}

// One thread merges the units into the query's posterior over the segment.
DIFFGEN_DEVICE Part merge_units(const Call& call, const QueryState& state, const Pair& pair,
                                const DecideRoom& room) {
    const Query& query = state.query;
    UnitRecord* const records = call.units + pair.at(call) * call.tiles;
    Part part;
    int word = 0;
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
        const int end = (room.unit_last[unit] + 1) * call.tile;
        for (; word < end / 32; ++word) part.listed += count_bits(room.masks[word]);
        // Tiles of less than 32 rows may end within a word.
        const uint32_t head = end % 32 ? (1u << end % 32) - 1 : 0;
        const int rest = head ? count_bits(room.masks[word] & head) : 0;
        const int rows = static_cast<int>((pair.count + 31) / 32 * 32);
        records[unit] = {factors.old, factors.fresh * step, end < rows ? end : rows,
                         part.listed + rest};
        part.digits = digits > part.digits ? digits : part.digits;
        if (unit + 1 == room.unit_total[0]) part.listed += rest;
    }
    part.units = room.unit_total[0];
    return part;
}

template <bool Aligned>
DIFFGEN_KERNEL(kDecideThreads, 2)
decide_segments(Call call) {
    const Pair pair = pair_of(call, block_index());
    const QueryState& state = call.queries[pair.b];
    if (!state.query.finite || pair.count == 0) {
        if (thread_index() == 0) call.parts[pair.at(call)] = Part();
        return;
    }
    const DecideRoom room = decide_room(call);
    if (state.query.sigma_is_zero) {
        decide_nearest(call, state, pair, room);
    } else if (is_screened(state)) {
        decide_left<Aligned>(call, state, pair, room);
    } else {
        decide_by_products(call, state, pair, room,
                           [&](int r) { return is_eligible(call, state, pair, r); });
    }
    sync_threads();
    count_tiles(call, state, pair, room);
    if (thread_index() == 0) group_tiles(call, state, pair, room);
    sync_threads();
    weigh_rows(call, state, pair, room);
    write_weights(call, pair, room);
    if (thread_index() == 0) call.parts[pair.at(call)] = merge_units(call, state, pair, room);
}

}  // namespace

}  // namespace diffgen::cuda
