// Rows of the set, and what a warp or a block of threads does with them.
#pragma once

#include "call.h"
#include "intrinsics.cuh"

namespace diffgen::cuda {

namespace {

// Turns four stored bytes into four signed ones less 128.
constexpr uint32_t kCentre = 0x80808080u;

DIFFGEN_DEVICE int64_t row_id(const Call& call, int64_t at) {
    return call.problem.rows ? call.problem.rows[at] : at;
}

DIFFGEN_DEVICE const uint8_t* row_of(const Call& call, int64_t id) {
    return static_cast<const uint8_t*>(call.problem.data) + id * call.problem.features;
}

DIFFGEN_DEVICE const int8_t* digits_of(const Call& call, int64_t column) {
    return call.digits + column * call.stride;
}

// Columns of digits whose products with a segment of the wave are formed.
struct Columns {
    const int32_t* list;
    int32_t count;
};

DIFFGEN_DEVICE Columns columns_of(const Call& call, int64_t local) {
    const int64_t most = kQueryDigits * call.problem.batch;
    if (!call.for_rest) return {call.columns + call.pass * most, call.column_count[call.pass]};
    return {call.rest_columns + local * most, call.rest_count[local]};
}

// 16 bytes of a row from feature k on, zeros past its end.
template <bool Aligned>
DIFFGEN_DEVICE Words row_words(const Call& call, const uint8_t* row, int64_t k) {
    if constexpr (Aligned) return load_global(row + k);
    Words words{};
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < 16; ++i) {
        const uint32_t byte = k + i < call.problem.features ? row[k + i] : 0;
        words.w[i / 4] |= byte << 8 * (i % 4);
    }
    return words;
}

DIFFGEN_DEVICE Words centred(Words words) {
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < 4; ++i) words.w[i] ^= kCentre;
    return words;
}

DIFFGEN_DEVICE int32_t dot16(const Words& a, const Words& b, int32_t sum) {
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < 4; ++i) sum = dot4(a.w[i], b.w[i], sum);
    return sum;
}

// Where 16-byte column `chunk` of a row of 64 bytes stands in shared memory: eight neighbouring
// rows of one column lie in different banks.
DIFFGEN_DEVICE int swizzled(int row, int chunk) {
    return row * 64 + (chunk ^ (row >> 1 & 3)) * 16;
}

// The larger of the values of `size` neighbouring lanes, a power of two.
DIFFGEN_DEVICE double largest_of(double value, int size) {
    for (int mask = size / 2; mask > 0; mask /= 2) value = larger(value, shuffle_xor(value, mask));
    return value;
}

template <typename T>
DIFFGEN_DEVICE T sum_of(T value, int size) {
    for (int mask = size / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

// Sum of term(k) over the features by a warp, in the fixed order of the CPU: four sums for each of
// eight lanes, over kChain features, then a total.
template <typename Term>
DIFFGEN_DEVICE double sum_over_features(int64_t features, Term term) {
    double total = 0.0;
    for (int64_t begin = 0; begin < features; begin += kChain) {
        const int64_t end = features - begin < kChain ? features : begin + kChain;
        double sum = 0.0;
        for (int64_t k = begin + lane_index(); k < end; k += 32) sum += term(k);
        // Lanes 8, then 16 apart are the four sums; then the eight lanes as in sum_lanes.
        sum += shuffle_xor(sum, 8);
        sum += shuffle_xor(sum, 16);
        sum += shuffle_xor(sum, 4);
        sum += shuffle_xor(sum, 2);
        sum += shuffle_xor(sum, 1);
        total += sum;
    }
    return total;
}

// |x - scale (row - 128)|^2 by differences, by a warp.
DIFFGEN_DEVICE double distance_to(const uint8_t* row, const double* x, double scale,
                                  int64_t features) {
    return sum_over_features(features, [=](int64_t k) {
        const double gap = x[k] - scale * (static_cast<double>(row[k]) - 128.0);
        return gap * gap;
    });
}

// That less |x - scale (anchor - 128)|^2, without the rounding of either.
DIFFGEN_DEVICE double excess_over(const uint8_t* row, const uint8_t* anchor, const double* x,
                                  double scale, int64_t features) {
    return sum_over_features(features, [=](int64_t k) {
        const int32_t apart = int32_t{anchor[k]} - int32_t{row[k]};
        const int32_t both = int32_t{anchor[k]} + int32_t{row[k]} - 256;
        const double far = 2.0 * x[k] - scale * static_cast<double>(both);
        return (scale * static_cast<double>(apart)) * far;
    });
}

}  // namespace

}  // namespace diffgen::cuda
