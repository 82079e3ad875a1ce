// Products of rows with the digits of many queries: matrix products of bytes on the tensor cores,
// over stages of shared memory that asynchronous copies fill.
#pragma once

#include "rows.cuh"

namespace diffgen::cuda {

namespace {

constexpr int kManyThreads = 128;
constexpr int kManyRows = 128;
constexpr int kManyColumns = 64;
constexpr int kManyStep = 64;  // features of a stage
constexpr int kManyStages = 3;
constexpr int kManyStageBytes = (kManyRows + kManyColumns) * kManyStep;
constexpr int kManyShared = kManyStages * kManyStageBytes;
constexpr int kManyBlocks = kSegmentRows / kManyRows;  // of a segment

// The rows and columns whose pieces of 16 bytes a thread brings.
constexpr int kRowPieces = kManyRows * 4 / kManyThreads;
constexpr int kColumnPieces = kManyColumns * 4 / kManyThreads;

struct Sources {
    const uint8_t* rows[kRowPieces];       // null past the last one
    const int8_t* columns[kColumnPieces];  // the same
};

DIFFGEN_DEVICE int64_t column_blocks(const Call& call) {
    return (kQueryDigits * call.problem.batch + kManyColumns - 1) / kManyColumns;
}

template <bool Aligned>
DIFFGEN_DEVICE void fill_stage(const Call& call, const Sources& sources, Shared<uint8_t> memory,
                               int stage, int64_t step) {
    const int chunk = thread_index() % 4;
    const int64_t k = step * kManyStep + chunk * 16;
    const int base = stage * kManyStageBytes;
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kRowPieces; ++i) {
        const int at = base + swizzled(thread_index() / 4 + kManyThreads / 4 * i, chunk);
        const bool there = sources.rows[i] != nullptr && k < call.problem.features;
        if constexpr (Aligned) {
            copy_async(memory, at, there ? sources.rows[i] + k : call.problem.data, there);
        } else {
            Words words{};
            if (there) words = row_words<false>(call, sources.rows[i], k);
            memory.store_words(at, words);
        }
    }
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kColumnPieces; ++i) {
        const int column = thread_index() / 4 + kManyThreads / 4 * i;
        const int at = base + kManyRows * kManyStep + swizzled(column, chunk);
        const bool there = sources.columns[i] != nullptr;
        copy_async(memory, at, there ? sources.columns[i] + k : call.digits, there);
    }
}

// A warp's 32 rows and all columns of a stage.
DIFFGEN_DEVICE void multiply_stage(Shared<uint8_t> memory, int stage, int32_t (&sums)[2][8][4]) {
    const int base = stage * kManyStageBytes;
    const int lane = lane_index();
    DIFFGEN_UNROLL_ALL
    for (int half = 0; half < 2; ++half) {
        uint32_t rows[2][4];
        DIFFGEN_UNROLL_ALL
        for (int m = 0; m < 2; ++m) {
            const int row = warp_index() * 32 + m * 16 + lane % 16;
            load_matrices(memory, base + swizzled(row, half * 2 + lane / 16), rows[m]);
            DIFFGEN_UNROLL_ALL
            for (int i = 0; i < 4; ++i) rows[m][i] ^= kCentre;
        }
        DIFFGEN_UNROLL_ALL
        for (int n = 0; n < 4; ++n) {
            uint32_t columns[4];
            const int column = n * 16 + lane % 8 + lane / 16 * 8;
            load_matrices(memory,
                          base + kManyRows * kManyStep + swizzled(column, half * 2 + lane / 8 % 2),
                          columns);
            DIFFGEN_UNROLL_ALL
            for (int m = 0; m < 2; ++m) {
                multiply_add(sums[m][2 * n], rows[m], columns[0], columns[1]);
                multiply_add(sums[m][2 * n + 1], rows[m], columns[2], columns[3]);
            }
        }
    }
}

template <bool Aligned>
DIFFGEN_KERNEL(kManyThreads, 4)
many_products(Call call) {
    const int64_t blocks = column_blocks(call);
    const int32_t first_column = static_cast<int32_t>(block_index() % blocks) * kManyColumns;
    const int64_t row_block = block_index() / blocks;
    const int64_t local = row_block / kManyBlocks;
    const int64_t first_row = row_block % kManyBlocks * kManyRows;
    const int64_t begin = call.begins[call.first + local];
    const int64_t count = call.begins[call.first + local + 1] - begin;
    const Columns listed = columns_of(call, local);
    const int32_t columns = listed.count;
    if (first_row >= count || first_column >= columns) return;
    Sources sources;
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kRowPieces; ++i) {
        const int64_t r = first_row + thread_index() / 4 + kManyThreads / 4 * i;
        sources.rows[i] = r < count ? row_of(call, row_id(call, begin + r)) : nullptr;
    }
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kColumnPieces; ++i) {
        const int32_t c = first_column + thread_index() / 4 + kManyThreads / 4 * i;
        sources.columns[i] = c < columns ? digits_of(call, listed.list[c]) : nullptr;
    }
    SharedMemory shared;
    const Shared<uint8_t> memory = shared.take<uint8_t>(kManyShared);
    const int64_t steps = (call.problem.features + kManyStep - 1) / kManyStep;
    DIFFGEN_UNROLL_ALL
    for (int stage = 0; stage < kManyStages - 1; ++stage) {
        if (stage < steps) fill_stage<Aligned>(call, sources, memory, stage, stage);
        commit_copies();
    }
    int32_t sums[2][8][4] = {};
    int stage = 0;
    for (int64_t step = 0; step < steps; ++step) {
        wait_for_copies<kManyStages - 2>();
        sync_threads();
        // The stage that all threads are done with: the one before this.
        const int64_t next = step + kManyStages - 1;
        const int free = stage == 0 ? kManyStages - 1 : stage - 1;
        if (next < steps) fill_stage<Aligned>(call, sources, memory, free, next);
        commit_copies();
        multiply_stage(memory, stage, sums);
        stage = stage + 1 == kManyStages ? 0 : stage + 1;
    }
    DIFFGEN_UNROLL_ALL
    for (int n = 0; n < 8; ++n) {
        DIFFGEN_UNROLL_ALL
        for (int side = 0; side < 2; ++side) {
            const int32_t c = first_column + n * 8 + lane_index() % 4 * 2 + side;
            if (c >= columns) continue;
            int32_t* const out =
                call.products + (listed.list[c] * call.wave + local) * kSegmentRows;
            DIFFGEN_UNROLL_ALL
            for (int m = 0; m < 2; ++m) {
                const int64_t r = first_row + warp_index() * 32 + m * 16 + lane_index() / 4;
                // There is room for what lies past the last row: nobody reads it.
                out[r] = sums[m][n][side];
                out[r + 8] = sums[m][n][2 + side];
            }
        }
    }
}

}  // namespace

}  // namespace diffgen::cuda
