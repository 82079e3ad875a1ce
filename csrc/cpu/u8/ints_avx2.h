// Products of bytes widened to 16 bits, by vpmaddwd: vpmaddubsw saturates.
#pragma once

#include <cstdint>

#include "ints_256.h"

namespace {

struct Ints : Ints256 {
    static constexpr int kBytes = 16;
    static constexpr int rows_beside(int columns) { return columns >= 3 ? 2 : 4; }
    static constexpr int kSumColumns = 3;

    static V row(const uint8_t* p) {
        return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p));
    }
    static V row_end(const uint8_t* p, int64_t count) {
        alignas(16) uint8_t bytes[16] = {};
        __builtin_memcpy(bytes, p, static_cast<size_t>(count));
        return row(bytes);
    }
    static V column(const int8_t* p) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
    }
    static V multiply_add(V sum, V row, V column) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(row, column));
    }

    // Rows are interleaved in pairs of 16-bit words, the second pair after the first.
    static constexpr int kRowsPerStep = 2;
    static constexpr int kVectors = 4;
    static constexpr int kStrip = 32;
    static void interleave(const uint8_t* const* rows, V (&out)[kVectors]) {
        for (int half = 0; half < 2; ++half) {
            const V wide_a = row(rows[0] + 16 * half);
            const V wide_b = row(rows[1] + 16 * half);
            out[2 * half] = _mm256_unpacklo_epi16(wide_a, wide_b);
            out[2 * half + 1] = _mm256_unpackhi_epi16(wide_a, wide_b);
        }
    }
    static V weights(const int8_t* p) {
        const uint32_t low = static_cast<uint16_t>(static_cast<int16_t>(p[0]));
        const uint32_t high = static_cast<uint16_t>(static_cast<int16_t>(p[1]));
        return _mm256_set1_epi32(static_cast<int32_t>(low | high << 16));
    }
    static void store_strip(const V (&sum)[kVectors], int32_t* out) {
        store_halves(sum[0], sum[1], out, out + 8);
        store_halves(sum[2], sum[3], out + 16, out + 24);
    }
};

}  // namespace
