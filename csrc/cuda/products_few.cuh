// Products of rows with the digits of few queries: bound by reading the rows, which four loads of
// 16 bytes in flight for each lane keep up with.
#pragma once

#include "rows.cuh"

namespace diffgen::cuda {

namespace {

constexpr int kFewThreads = 256;
constexpr int kFewRows = 4;                                               // of a warp
constexpr int kFewColumns = 8;                                            // of a pass over the rows
constexpr int kFewBlocks = kSegmentRows / (kFewRows * kFewThreads / 32);  // of a segment

// Lane l of the result is the sum over all lanes of values[l].
template <int Half = 16>
DIFFGEN_DEVICE int32_t sum_across(int32_t (&values)[32]) {
    const bool upper = lane_index() & Half;
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < Half; ++i) {
        const int32_t low = values[i];
        const int32_t high = values[i + Half];
        values[i] = (upper ? high : low) + shuffle_xor(upper ? low : high, Half);
    }
    if constexpr (Half > 1) return sum_across<Half / 2>(values);
    return values[0];
}

template <bool Aligned>
DIFFGEN_KERNEL(kFewThreads, 2)
few_products(Call call) {
    const int64_t features = call.problem.features;
    const int64_t local = block_index() / kFewBlocks;
    const int64_t begin = call.begins[call.first + local];
    const int64_t count = call.begins[call.first + local + 1] - begin;
    const int64_t part = block_index() % kFewBlocks * (kFewThreads / 32) + warp_index();
    const int64_t first = part * kFewRows;
    if (first >= count) return;
    const uint8_t* rows[kFewRows];
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kFewRows; ++i) {
        const int64_t r = first + i < count ? first + i : count - 1;
        rows[i] = row_of(call, row_id(call, begin + r));
    }
    const Columns listed = columns_of(call, local);
    const int32_t columns = listed.count;
    for (int32_t c = 0; c < columns; c += kFewColumns) {
        const int8_t* digits[kFewColumns];
        DIFFGEN_UNROLL_ALL
        for (int j = 0; j < kFewColumns; ++j) {
            digits[j] = digits_of(call, listed.list[c + j < columns ? c + j : columns - 1]);
        }
        int32_t sums[kFewRows * kFewColumns] = {};
        for (int64_t k = lane_index() * 16; k < features; k += 32 * 16) {
            Words row[kFewRows];
            DIFFGEN_UNROLL_ALL
            for (int i = 0; i < kFewRows; ++i) row[i] = row_words<Aligned>(call, rows[i], k);
            DIFFGEN_UNROLL_ALL
            for (int i = 0; i < kFewRows; ++i) row[i] = centred(row[i]);
            DIFFGEN_UNROLL_ALL
            for (int j = 0; j < kFewColumns; ++j) {
                if (c + j < columns) {
                    const Words digit = load_global(digits[j] + k);
                    DIFFGEN_UNROLL_ALL
                    for (int i = 0; i < kFewRows; ++i) {
                        const int at = i * kFewColumns + j;
                        sums[at] = dot16(row[i], digit, sums[at]);
                    }
                }
            }
        }
        const int32_t total = sum_across(sums);
        // Room for what lies past the last row there is: nobody reads it.
        const int64_t r = first + lane_index() / kFewColumns;
        const int32_t j = c + lane_index() % kFewColumns;
        if (j < columns) {
            call.products[(listed.list[j] * call.wave + local) * kSegmentRows + r] = total;
        }
    }
}

}  // namespace

}  // namespace diffgen::cuda
