// Weighted sums of the rows that weigh anything, where they are few: one query and segment at a
// time, 16 features a thread.
#pragma once

#include "products.cuh"

namespace diffgen::cuda {

namespace {

constexpr int kSparseThreads = 64;
constexpr int kSparseEach = 16;
constexpr int kSparseFeatures = kSparseThreads * kSparseEach;
constexpr int kSparseAtOnce = 4;  // rows
// Rows whose products with pairs of digits, under 2^23 each, have sums within 32 bits.
constexpr int kNarrowRows = 256;
// The state of a mean after a unit whose sum is `whole`.
DIFFGEN_DEVICE double folded(double state, int64_t whole, double old, double fresh) {
    return state * old + static_cast<double>(whole) * fresh;
}

// Sums of a thread's features by pairs of digits.
struct PairSums {
    int32_t low[kSparseEach];
    int32_t middle[kSparseEach];
    int32_t high[kSparseEach];
};

DIFFGEN_DEVICE void add_row(const Words& row, int32_t low, int32_t middle, int32_t high,
                            PairSums& sums) {
    const Words words = centred(row);
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kSparseEach; ++i) {
        const int32_t value = static_cast<int8_t>(words.w[i / 4] >> 8 * (i % 4));
        sums.low[i] += low * value;
        sums.middle[i] += middle * value;
        sums.high[i] += high * value;
    }
}

template <bool Aligned>
DIFFGEN_KERNEL(kSparseThreads, 4)
sparse_sums(Call call) {
    const int64_t features = call.problem.features;
    const int64_t blocks = (features + kSparseFeatures - 1) / kSparseFeatures;
    const Pair pair = pair_of(call, block_index() / blocks);
    const int64_t k = block_index() % blocks * kSparseFeatures + thread_index() * kSparseEach;
    if (k >= features || call.weighed[pair.at(call)].digits == 0) return;
    if (call.courses[pair.b / kGroup * call.wave + pair.local] != 0) return;
    const UnitRecord* const records = call.units + pair.at(call) * call.tiles;
    const uint16_t* const list = call.lists + pair.at(call) * kSegmentRows;
    const int8_t* const digits = call.weights + pair.at(call) * (kWeightDigits * kSegmentRows);
    const int32_t units = call.parts[pair.at(call)].units;
    double state[kSparseEach] = {};
    int32_t n = 0;
    for (int32_t unit = 0; unit < units; ++unit) {
        const UnitRecord record = records[unit];
        int64_t whole[kSparseEach] = {};
        while (n < record.list_end) {
            const int32_t end =
                record.list_end - n < kNarrowRows ? record.list_end : n + kNarrowRows;
            PairSums sums = {};
            for (; n < end; n += kSparseAtOnce) {
                const int32_t here = end - n < kSparseAtOnce ? end - n : kSparseAtOnce;
                int32_t places[kSparseAtOnce];
                Words rows[kSparseAtOnce];
                DIFFGEN_UNROLL_ALL
                for (int i = 0; i < kSparseAtOnce; ++i) {
                    places[i] = list[i < here ? n + i : n];
                    const int64_t id = row_id(call, pair.begin + places[i]);
                    rows[i] = row_words<Aligned>(call, row_of(call, id), k);
                }
                DIFFGEN_UNROLL_ALL
                for (int i = 0; i < kSparseAtOnce; ++i) {
                    if (i >= here) break;
                    const int8_t* const digit = digits + places[i];
                    add_row(rows[i], digit[kSegmentRows] * 256 + digit[0],
                            digit[3 * kSegmentRows] * 256 + digit[2 * kSegmentRows],
                            digit[4 * kSegmentRows], sums);
                }
            }
            n = end;
            DIFFGEN_UNROLL_ALL
            for (int i = 0; i < kSparseEach; ++i) {
                whole[i] += (int64_t{sums.high[i]} * 65536 + sums.middle[i]) * 65536 + sums.low[i];
            }
        }
        DIFFGEN_UNROLL_ALL
        for (int i = 0; i < kSparseEach; ++i) {
            state[i] = folded(state[i], whole[i], record.old, record.fresh);
        }
    }
    double* const out = call.means + pair.at(call) * features;
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kSparseEach; ++i) {
        if (k + i < features) out[k + i] = state[i];
    }
}

}  // namespace

}  // namespace diffgen::cuda
