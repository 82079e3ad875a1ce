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
constexpr int kDenseRowBytes = kDenseStep * kDenseFeatures;
constexpr int kDenseStageBytes = kDenseRowBytes + kWeightDigits * kGroup * kDenseStep;
constexpr int kDenseShared = kDenseStages * kDenseStageBytes;

// Where 16-byte column `chunk` of a row of 128 bytes stands in shared memory: four lanes that read
// rows 4 apart read different banks.
DIFFGEN_DEVICE int swizzled_row(int row, int chunk) {
    return row * kDenseFeatures + (chunk ^ (row >> 2 & 3) * 2) * 16;
}

struct DenseBlock {
    int64_t group;
    int64_t local;
    int64_t begin;  // of the segment, among the eligible rows
    int64_t count;
    int64_t feature;
    int planes;  // digits of the weights, at most
};

template <bool Aligned>
DIFFGEN_DEVICE void fill_dense(const Call& call, const DenseBlock& block, Shared<uint8_t> memory,
                               int stage, int64_t step) {
    const int base = stage * kDenseStageBytes;
    const int chunk = thread_index() % 8;
    const int64_t k = block.feature + chunk * 16;
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kDenseStep * 8 / kDenseThreads; ++i) {
        const int row = thread_index() / 8 + kDenseThreads / 8 * i;
        const int64_t r = step * kDenseStep + row;
        const bool there = r < block.count && k < call.problem.features;
        const uint8_t* const from = there ? row_of(call, row_id(call, block.begin + r)) : nullptr;
        const int at = base + swizzled_row(row, chunk);
        if constexpr (Aligned) {
            copy_async(memory, at, there ? from + k : nullptr);
        } else {
            Words words{};
            if (there) words = row_words<false>(call, from, k);
            memory.store_words(at, words);
        }
    }
    for (int i = thread_index(); i < block.planes * kGroup * 4; i += kDenseThreads) {
        const int line = i / 4;
        const int64_t b = block.group * kGroup + line % kGroup;
        const int8_t* from = nullptr;
        if (b < call.problem.batch && is_used(call, b, block.local)) {
            const int64_t plane = (b * call.wave + block.local) * kWeightDigits + line / kGroup;
            from = call.weights + plane * kSegmentRows + step * kDenseStep + i % 4 * 16;
        }
        copy_async(memory, base + kDenseRowBytes + swizzled(line, i % 4), from);
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

// A query's units as a lane meets them.
struct Cursor {
    const UnitRecord* next;
    int32_t left;
};

// Sums of digits of queries g and g + 8, g = lane / 4, over features 8 t + i and 8 t + 4 + i of the
// warp's 32, t = lane % 4: [digit][i][2 (query) + (feature)].
using DenseSums = int32_t[kWeightDigits][4][4];

DIFFGEN_DEVICE void multiply_dense(Shared<uint8_t> memory, int base, int half, int planes,
                                   DenseSums& sums) {
    const int lane = lane_index();
    uint32_t rows[2][4];
    DIFFGEN_UNROLL_ALL
    for (int part = 0; part < 2; ++part) {
        uint32_t words[4];
        DIFFGEN_UNROLL_ALL
        for (int i = 0; i < 4; ++i) {
            const int row = half * 32 + part * 16 + lane % 4 * 4 + i;
            const int at = swizzled_row(row, warp_index() * 2 + lane / 16) + lane / 4 % 4 * 4;
            words[i] = memory.load_word(base + at) ^ kCentre;
        }
        transpose_bytes(words, rows[part]);
    }
    DIFFGEN_UNROLL_ALL
    for (int j = 0; j < kWeightDigits; ++j) {
        if (j >= planes) break;
        uint32_t digits[4];
        const int line = j * kGroup + lane % 16;
        load_matrices(memory, base + kDenseRowBytes + swizzled(line, half * 2 + lane / 16), digits);
        DIFFGEN_UNROLL_ALL
        for (int n = 0; n < 4; ++n) multiply_add(sums[j][n], digits, rows[0][n], rows[1][n]);
    }
}

// Folds the sums of query g + 8 `side` where its unit ends.
DIFFGEN_DEVICE void fold_unit(int side, int32_t end, Cursor& cursor, DenseSums& sums,
                              double (&state)[2][4][2]) {
    if (cursor.left == 0 || cursor.next->row_end != end) return;
    const double old = cursor.next->old;
    const double fresh = cursor.next->fresh;
    ++cursor.next;
    --cursor.left;
    DIFFGEN_UNROLL_ALL
    for (int n = 0; n < 4; ++n) {
        DIFFGEN_UNROLL_ALL
        for (int p = 0; p < 2; ++p) {
            int64_t whole = 0;
            DIFFGEN_UNROLL_ALL
            for (int j = kWeightDigits - 1; j >= 0; --j) {
                int32_t& sum = sums[j][n][2 * side + p];
                whole = whole * 256 + sum;
                sum = 0;
            }
            state[side][n][p] = folded(state[side][n][p], whole, old, fresh);
        }
    }
}

template <bool Aligned>
DIFFGEN_KERNEL(kDenseThreads, 2)
dense_sums(Call call) {
    const int64_t features = call.problem.features;
    const int64_t blocks = (features + kDenseFeatures - 1) / kDenseFeatures;
    DenseBlock block;
    block.feature = block_index() % blocks * kDenseFeatures;
    block.local = block_index() / blocks % call.here;
    block.group = block_index() / blocks / call.here;
    if (!is_by_products(call, block.group, block.local)) return;
    block.begin = call.begins[call.first + block.local];
    block.count = call.begins[call.first + block.local + 1] - block.begin;
    block.planes = 0;
    for (int64_t b = block.group * kGroup; b < (block.group + 1) * kGroup; ++b) {
        if (b >= call.problem.batch || !is_used(call, b, block.local)) continue;
        const int digits = call.parts[b * call.wave + block.local].digits;
        block.planes = digits > block.planes ? digits : block.planes;
    }
    if (block.planes == 0) return;
    Cursor cursors[2];
    DIFFGEN_UNROLL_ALL
    for (int side = 0; side < 2; ++side) {
        const int64_t b = block.group * kGroup + lane_index() / 4 + 8 * side;
        const int64_t pair = b * call.wave + block.local;
        const bool used = b < call.problem.batch && is_used(call, b, block.local);
        cursors[side] = {call.units + pair * call.tiles, used ? call.parts[pair].units : 0};
    }
    SharedMemory shared;
    const Shared<uint8_t> memory = shared.take<uint8_t>(kDenseShared);
    const int64_t steps = (block.count + kDenseStep - 1) / kDenseStep;
    DIFFGEN_UNROLL_ALL
    for (int stage = 0; stage < kDenseStages - 1; ++stage) {
        if (stage < steps) fill_dense<Aligned>(call, block, memory, stage, stage);
        commit_copies();
    }
    DenseSums sums = {};
    double state[2][4][2] = {};
    int stage = 0;
    for (int64_t step = 0; step < steps; ++step) {
        wait_for_copies<kDenseStages - 2>();
        sync_threads();
        // The stage that all threads are done with: the one before this.
        const int64_t next = step + kDenseStages - 1;
        const int free = stage == 0 ? kDenseStages - 1 : stage - 1;
        if (next < steps) fill_dense<Aligned>(call, block, memory, free, next);
        commit_copies();
        DIFFGEN_UNROLL_ALL
        for (int half = 0; half < 2; ++half) {
            multiply_dense(memory, stage * kDenseStageBytes, half, block.planes, sums);
            const int32_t end = static_cast<int32_t>(step) * kDenseStep + half * 32 + 32;
            fold_unit(0, end, cursors[0], sums, state);
            fold_unit(1, end, cursors[1], sums, state);
        }
        stage = stage + 1 == kDenseStages ? 0 : stage + 1;
    }
    DIFFGEN_UNROLL_ALL
    for (int side = 0; side < 2; ++side) {
        const int64_t b = block.group * kGroup + lane_index() / 4 + 8 * side;
        if (b >= call.problem.batch || !is_used(call, b, block.local)) continue;
        double* const out = call.means + (b * call.wave + block.local) * features;
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
