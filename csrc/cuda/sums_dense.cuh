// Weighted sums of rows for groups of queries: digits of weights times rows on the tensor cores.
//
// A segment's rows pass once; where a unit of a query ends, its sums are folded into the mean that
// the lanes hold in float64.
#pragma once

#include "sums_sparse.cuh"

namespace diffgen::cuda {

namespace {

constexpr int kDenseThreads = 256;
constexpr int kDenseFeatures = 128;  // of a block: 32 a warp
constexpr int kDenseGroups = 2;      // of queries, each by half of the warps
constexpr int kDenseWarps = kDenseThreads / 32 / kDenseGroups;
constexpr int kDenseStep = 64;  // rows of a stage
constexpr int kDenseStages = 3;
constexpr int kDenseRowsAtOnce = kDenseThreads / 8;  // of a copy by all threads
constexpr int kDenseRowBytes = kDenseStep * kDenseFeatures;
// Digits that most weights have: sums of no more fit the registers of more threads.
constexpr int kUsualDigits = kWeightDigits - 2;

template <int Digits>
constexpr int kDenseStageBytes = kDenseRowBytes + kDenseGroups * Digits * kGroup * kDenseStep;
template <int Digits>
constexpr int kDenseShared = kDenseStages * kDenseStageBytes<Digits>;
// Pieces of 16 bytes of the weights' digits that a thread brings, at most.
template <int Digits>
constexpr int kDensePieces =
    (kDenseGroups * Digits * kGroup * 4 + kDenseThreads - 1) / kDenseThreads;

// Where 16-byte column `chunk` of a row of 128 bytes stands in shared memory: four lanes that read
// rows 4 apart read different banks.
DIFFGEN_DEVICE int swizzled_row(int row, int chunk) {
    return row * kDenseFeatures + (chunk ^ (row >> 2 & 3) * 2) * 16;
}

template <int Digits>
struct DenseBlock {
    int32_t group;  // of this warp
    int32_t local;
    int64_t begin;  // of the segment, among the eligible rows
    int count;      // of its rows; none for a thread whose features are past the last
    int64_t feature;
    int planes;          // digits of the weights, at most
    const uint8_t* own;  // 16 features of the first row that a thread brings, of ids in sequence
    const int8_t* weights[kDensePieces<Digits>];  // of the first step; null for none
};

// Whether a query's sums over a segment are formed here.
DIFFGEN_DEVICE bool is_summed(const Call& call, int64_t b, int64_t local) {
    return b < call.problem.batch && call.courses[b / kGroup * call.wave + local] != 0 &&
           call.weighed[b * call.wave + local].digits != 0;
}

// No weight has fewer than the usual digits.
template <int Digits>
DIFFGEN_DEVICE int digits_of_block(const DenseBlock<Digits>& block) {
    return Digits > kUsualDigits ? block.planes : Digits;
}

template <bool Aligned, int Digits>
DIFFGEN_DEVICE void fill_dense(const Call& call, const DenseBlock<Digits>& block,
                               Shared<uint8_t> memory, int stage, int step) {
    const int base = stage * kDenseStageBytes<Digits>;
    const int chunk = thread_index() % 8;
    const int first = step * kDenseStep + thread_index() / 8;
    const int64_t stride = call.problem.features * kDenseRowsAtOnce;
    const uint8_t* from = block.own + step * kDenseStep * call.problem.features;
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kDenseStep / kDenseRowsAtOnce; ++i) {
        const int r = first + kDenseRowsAtOnce * i;
        const bool there = r < block.count;
        const int at = base + swizzled_row(thread_index() / 8 + kDenseRowsAtOnce * i, chunk);
        if (there && call.problem.rows != nullptr) {
            from = row_of(call, call.problem.rows[block.begin + r]) + block.feature + chunk * 16;
        }
        if constexpr (Aligned) {
            copy_async(memory, at, there ? from : call.problem.data, there);
        } else {
            Words words{};
            const int64_t k = block.feature + chunk * 16;
            if (there) words = row_words<false>(call, from - k, k);
            memory.store_words(at, words);
        }
        from += stride;
    }
    DIFFGEN_UNROLL_ALL
    for (int n = 0; n < kDensePieces<Digits>; ++n) {
        const int i = n * kDenseThreads + thread_index();
        if (i >= kDenseGroups * Digits * kGroup * 4) break;
        if (i / 4 / kGroup % Digits >= digits_of_block(block)) continue;
        const int8_t* const from = block.weights[n];
        const bool there = from != nullptr;
        copy_async(memory, base + kDenseRowBytes + swizzled(i / 4, i % 4),
                   there ? from + step * kDenseStep : call.weights, there);
    }
}

// Four rows of four features become four features of four rows.
DIFFGEN_DEVICE void transpose_bytes(const uint32_t (&rows)[4], uint32_t (&features)[4]) {
    const uint32_t low_first = pick_bytes(rows[0], rows[1], 0x5140);
    const uint32_t high_first = pick_bytes(rows[0], rows[1], 0x7362);
    const uint32_t low_last = pick_bytes(rows[2], rows[3], 0x5140);
    const uint32_t high_last = pick_bytes(rows[2], rows[3], 0x7362);
    features[0] = pick_bytes(low_first, low_last, 0x5410);
    features[1] = pick_bytes(low_first, low_last, 0x7632);
    features[2] = pick_bytes(high_first, high_last, 0x5410);
    features[3] = pick_bytes(high_first, high_last, 0x7632);
}

// A query's units as a lane meets them: the one at hand, and how many there are with it.
struct Cursor {
    const UnitRecord* unit;
    int32_t left;
    int32_t row_end;  // of the one at hand

    DIFFGEN_DEVICE void advance() {
        ++unit;
        if (--left > 0) row_end = unit->row_end;
    }
};

// Sums of digits of queries g and g + 8, g = lane / 4, over features 8 t + i and 8 t + 4 + i of the
// warp's 32, t = lane % 4: [digit][i][2 (query) + (feature)].
template <int Digits>
using DenseSums = int32_t[Digits][4][4];

template <int Digits>
DIFFGEN_DEVICE void multiply_dense(Shared<uint8_t> memory, int base, int half, int planes,
                                   DenseSums<Digits>& sums) {
    const int lane = lane_index();
    // The place of a row does not depend on more of it than lane % 4: see swizzled_row.
    const int first = base +
                      swizzled_row(lane % 4 * 4, warp_index() % kDenseWarps * 2 + lane / 16) +
                      lane / 4 % 4 * 4;
    uint32_t rows[2][4];
    DIFFGEN_UNROLL_ALL
    for (int part = 0; part < 2; ++part) {
        uint32_t words[4];
        DIFFGEN_UNROLL_ALL
        for (int i = 0; i < 4; ++i) {
            const int row = half * 32 + part * 16 + i;
            words[i] = memory.load_word(first + row * kDenseFeatures) ^ kCentre;
        }
        transpose_bytes(words, rows[part]);
    }
    const int line = base + kDenseRowBytes +
                     warp_index() / kDenseWarps * Digits * kGroup * kDenseStep +
                     swizzled(lane % 16, half * 2 + lane / 16);
    DIFFGEN_UNROLL_ALL
    for (int j = 0; j < Digits; ++j) {
        if (j >= planes) break;
        uint32_t digits[4];
        load_matrices(memory, line + j * kGroup * kDenseStep, digits);
        DIFFGEN_UNROLL_ALL
        for (int n = 0; n < 4; ++n) multiply_add(sums[j][n], digits, rows[0][n], rows[1][n]);
    }
}

// Folds the sums of query g + 8 `side` where its unit ends.
template <int Digits>
DIFFGEN_DEVICE void fold_unit(int side, int32_t end, Cursor& cursor, DenseSums<Digits>& sums,
                              double (&state)[2][4][2]) {
    if (cursor.row_end != end) return;
    const double old = cursor.unit->old;
    const double fresh = cursor.unit->fresh;
    DIFFGEN_UNROLL_ALL
    for (int n = 0; n < 4; ++n) {
        DIFFGEN_UNROLL_ALL
        for (int p = 0; p < 2; ++p) {
            int64_t whole = 0;
            DIFFGEN_UNROLL_ALL
            for (int j = Digits - 1; j >= 0; --j) {
                int32_t& sum = sums[j][n][2 * side + p];
                whole = whole * 256 + sum;
                sum = 0;
            }
            state[side][n][p] = folded(state[side][n][p], whole, old, fresh);
        }
    }
    cursor.advance();
}

template <bool Aligned, int Digits>
DIFFGEN_KERNEL(kDenseThreads, Aligned&& Digits == kUsualDigits ? 2 : 1)
dense_sums(Call call) {
    const int64_t features = call.problem.features;
    const int64_t blocks = (features + kDenseFeatures - 1) / kDenseFeatures;
    const int64_t groups = groups_of(call.problem.batch);
    const int64_t sets = (groups + kDenseGroups - 1) / kDenseGroups;
    DenseBlock<Digits> block;
    // Sets of groups next to each other read the same rows.
    const int64_t first_group = block_index() % sets * kDenseGroups;
    block.group = static_cast<int32_t>(first_group) + warp_index() / kDenseWarps;
    block.feature = block_index() / sets % blocks * kDenseFeatures;
    block.local = static_cast<int32_t>(block_index() / sets / blocks);
    block.planes = 0;
    for (int64_t g = first_group; g < first_group + kDenseGroups && g < groups; ++g) {
        const int32_t digits = call.courses[g * call.wave + block.local];
        block.planes = digits > block.planes ? digits : block.planes;
    }
    if (block.planes == 0 || (block.planes > kUsualDigits) != (Digits > kUsualDigits)) return;
    block.begin = call.begins[call.first + block.local];
    const int count = static_cast<int>(call.begins[call.first + block.local + 1] - block.begin);
    const int64_t own_feature = block.feature + thread_index() % 8 * 16;
    block.count = own_feature < features ? count : 0;
    block.own = static_cast<const uint8_t*>(call.problem.data) +
                (block.begin + thread_index() / 8) * features + own_feature;
    DIFFGEN_UNROLL_ALL
    for (int n = 0; n < kDensePieces<Digits>; ++n) {
        const int i = n * kDenseThreads + thread_index();
        const int line = i / 4;  // of a group's digit's query
        const int64_t group = first_group + line / (Digits * kGroup);
        const int64_t b = group * kGroup + line % kGroup;
        block.weights[n] = nullptr;
        if (!is_summed(call, b, block.local)) continue;
        const int64_t pair = b * call.wave + block.local;
        const int64_t plane = pair * kWeightDigits + line / kGroup % Digits;
        block.weights[n] = call.weights + plane * kSegmentRows + i % 4 * 16;
    }
    Cursor cursors[2];
    DIFFGEN_UNROLL_ALL
    for (int side = 0; side < 2; ++side) {
        const int64_t b = int64_t{block.group} * kGroup + lane_index() / 4 + 8 * side;
        cursors[side] = {nullptr, 0, 0};
        if (!is_summed(call, b, block.local)) continue;
        const int64_t pair = b * call.wave + block.local;
        const UnitRecord* const units = call.units + pair * call.tiles;
        cursors[side] = {units, call.parts[pair].units, units->row_end};
    }
    SharedMemory shared;
    const Shared<uint8_t> memory = shared.take<uint8_t>(kDenseShared<Digits>);
    const int steps = (count + kDenseStep - 1) / kDenseStep;
    DIFFGEN_UNROLL_ALL
    for (int stage = 0; stage < kDenseStages - 1; ++stage) {
        if (stage < steps) fill_dense<Aligned, Digits>(call, block, memory, stage, stage);
        commit_copies();
    }
    DenseSums<Digits> sums = {};
    double state[2][4][2] = {};
    int stage = 0;
    for (int step = 0; step < steps; ++step) {
        wait_for_copies<kDenseStages - 2>();
        sync_threads();
        // The stage that all threads are done with: the one before this.
        const int next = step + kDenseStages - 1;
        const int free = stage == 0 ? kDenseStages - 1 : stage - 1;
        if (next < steps) fill_dense<Aligned, Digits>(call, block, memory, free, next);
        commit_copies();
        DIFFGEN_UNROLL_ALL
        for (int half = 0; half < 2; ++half) {
            multiply_dense<Digits>(memory, stage * kDenseStageBytes<Digits>, half,
                                   digits_of_block(block), sums);
            const int32_t end = step * kDenseStep + half * 32 + 32;
            fold_unit<Digits>(0, end, cursors[0], sums, state);
            fold_unit<Digits>(1, end, cursors[1], sums, state);
        }
        stage = stage + 1 == kDenseStages ? 0 : stage + 1;
    }
    DIFFGEN_UNROLL_ALL
    for (int side = 0; side < 2; ++side) {
        const int64_t b = int64_t{block.group} * kGroup + lane_index() / 4 + 8 * side;
        if (!is_summed(call, b, block.local)) continue;
        double* const out = call.means + (b * call.wave + block.local) * features;
        DIFFGEN_UNROLL_ALL
        for (int n = 0; n < 4; ++n) {
            DIFFGEN_UNROLL_ALL
            for (int p = 0; p < 2; ++p) {
                const int64_t k = block.feature + warp_index() % kDenseWarps * 32 +
                                  lane_index() % 4 * 8 + 4 * p + n;
                if (k < features) out[k] = state[side][n][p];
            }
        }
    }
}

}  // namespace

}  // namespace diffgen::cuda
