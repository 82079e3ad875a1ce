// Weighted sums of rows for groups of queries: digits of weights times rows on the tensor cores.
//
// A segment's rows pass once; where a unit of a query ends, its sums are folded into the mean that
// the lanes hold in float64.
#pragma once

#include "sums_sparse.cuh"

namespace diffgen::cuda {

namespace {

constexpr int kDenseThreads = 128;
constexpr int kDenseFeatures = 128;  // of a block: 32 a warp
constexpr int kDenseStep = 64;       // rows of a stage
constexpr int kDenseStages = 3;
constexpr int kDenseRowsAtOnce = kDenseThreads / 8;  // of a copy by all threads
constexpr int kDenseRowBytes = kDenseStep * kDenseFeatures;
// Digits that most weights have: sums of no more fit the registers of more threads.
constexpr int kUsualDigits = kWeightDigits - 2;

template <int Digits>
constexpr int kDenseStageBytes = kDenseRowBytes + Digits * kGroup * kDenseStep;
template <int Digits>
constexpr int kDenseShared = kDenseStages * kDenseStageBytes<Digits>;
// Pieces of 16 bytes of the weights' digits that a thread brings, at most.
template <int Digits>
constexpr int kDensePieces = (Digits * kGroup * 4 + kDenseThreads - 1) / kDenseThreads;

// Where 16-byte column `chunk` of a row of 128 bytes stands in shared memory: four lanes that read
// rows 4 apart read different banks.
DIFFGEN_DEVICE int swizzled_row(int row, int chunk) {
    return row * kDenseFeatures + (chunk ^ (row >> 2 & 3) * 2) * 16;
}

template <int Digits>
struct DenseBlock {
    int64_t group;
    int64_t local;
    int64_t begin;  // of the segment, among the eligible rows
    int count;
    int64_t feature;
    int planes;           // digits of the weights, at most
    const uint8_t* rows;  // the first
    const uint8_t* own;   // 16 features of the first that a thread brings, if ids are consecutive
    // Of the first step; what is not weighed is not copied.
    const int8_t* weights[kDensePieces<Digits>];
    bool weighed[kDensePieces<Digits>];
};

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
    const int64_t k = block.feature + chunk * 16;
    const int first = step * kDenseStep + thread_index() / 8;
    const int64_t stride = call.problem.features * kDenseRowsAtOnce;
    const uint8_t* from = block.own + step * kDenseStep * call.problem.features;
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kDenseStep / kDenseRowsAtOnce; ++i) {
        const int r = first + kDenseRowsAtOnce * i;
        const bool there = r < block.count && k < call.problem.features;
        const int at = base + swizzled_row(thread_index() / 8 + kDenseRowsAtOnce * i, chunk);
        if (there && call.problem.rows != nullptr) {
            from = row_of(call, call.problem.rows[block.begin + r]) + k;
        }
        if constexpr (Aligned) {
            copy_async(memory, at, there ? from : block.rows, there);
        } else {
            Words words{};
            if (there) words = row_words<false>(call, from - k, k);
            memory.store_words(at, words);
        }
        from += stride;
    }
    DIFFGEN_UNROLL_ALL
    for (int n = 0; n < kDensePieces<Digits>; ++n) {
        const int i = n * kDenseThreads + thread_index();
        if (i >= digits_of_block(block) * kGroup * 4) break;
        copy_async(memory, base + kDenseRowBytes + swizzled(i / 4, i % 4),
                   block.weights[n] + step * kDenseStep, block.weighed[n]);
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
    UnitRecord unit;
    const UnitRecord* next;
    int32_t left;

    DIFFGEN_DEVICE void advance() {
        if (--left > 0) unit = *next++;
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
    const int first =
        base + swizzled_row(lane % 4 * 4, warp_index() * 2 + lane / 16) + lane / 4 % 4 * 4;
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
    const int line = base + kDenseRowBytes + swizzled(lane % 16, half * 2 + lane / 16);
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
    if (cursor.left == 0 || cursor.unit.row_end != end) return;
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
            state[side][n][p] =
                folded(state[side][n][p], whole, cursor.unit.old, cursor.unit.fresh);
        }
    }
    cursor.advance();
}

template <bool Aligned, int Digits>
DIFFGEN_KERNEL(kDenseThreads, Digits > kUsualDigits ? 2 : 3)
dense_sums(Call call) {
    const int64_t features = call.problem.features;
    const int64_t blocks = (features + kDenseFeatures - 1) / kDenseFeatures;
    // Groups of queries next to each other read the same rows.
    const int64_t groups = (call.problem.batch + kGroup - 1) / kGroup;
    DenseBlock<Digits> block;
    block.group = block_index() % groups;
    block.feature = block_index() / groups % blocks * kDenseFeatures;
    block.local = block_index() / groups / blocks;
    block.planes = call.courses[block.group * call.wave + block.local];
    if (block.planes == 0 || (block.planes > kUsualDigits) != (Digits > kUsualDigits)) return;
    block.begin = call.begins[call.first + block.local];
    block.count = static_cast<int>(call.begins[call.first + block.local + 1] - block.begin);
    block.rows = row_of(call, row_id(call, block.begin));
    block.own =
        block.rows + (thread_index() / 8 * features + block.feature + thread_index() % 8 * 16);
    DIFFGEN_UNROLL_ALL
    for (int n = 0; n < kDensePieces<Digits>; ++n) {
        const int i = n * kDenseThreads + thread_index();
        const int64_t b = block.group * kGroup + i / 4 % kGroup;
        block.weights[n] = call.weights;
        block.weighed[n] = false;
        if (b >= call.problem.batch) continue;
        const int64_t pair = b * call.wave + block.local;
        if (call.weighed[pair].digits == 0) continue;
        block.weighed[n] = true;
        const int64_t plane = pair * kWeightDigits + i / 4 / kGroup;
        block.weights[n] = call.weights + plane * kSegmentRows + i % 4 * 16;
    }
    Cursor cursors[2];
    DIFFGEN_UNROLL_ALL
    for (int side = 0; side < 2; ++side) {
        const int64_t b = block.group * kGroup + lane_index() / 4 + 8 * side;
        cursors[side] = {{}, nullptr, 0};
        if (b >= call.problem.batch) continue;
        const int64_t pair = b * call.wave + block.local;
        if (call.weighed[pair].digits == 0) continue;
        cursors[side] = {{}, call.units + pair * call.tiles, call.parts[pair].units + 1};
        cursors[side].advance();
    }
    SharedMemory shared;
    const Shared<uint8_t> memory = shared.take<uint8_t>(kDenseShared<Digits>);
    const int steps = (block.count + kDenseStep - 1) / kDenseStep;
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
        const int64_t b = block.group * kGroup + lane_index() / 4 + 8 * side;
        if (b >= call.problem.batch) continue;
        const int64_t pair = b * call.wave + block.local;
        if (call.weighed[pair].digits == 0) continue;
        double* const out = call.means + pair * features;
        DIFFGEN_UNROLL_ALL
        for (int n = 0; n < 4; ++n) {
            DIFFGEN_UNROLL_ALL
            for (int p = 0; p < 2; ++p) {
                const int64_t k =
                    block.feature + warp_index() * 32 + lane_index() % 4 * 8 + 4 * p + n;
                if (k < features) out[k] = state[side][n][p];
            }
        }
    }
}

}  // namespace

}  // namespace diffgen::cuda
