// Products of bytes widened to 16 bits, by vpmaddwd: vpmaddubsw saturates.
#pragma once

#include <cstdint>

#include "../x86_intrinsics.h"

namespace {

struct Ints {
    using V = __m256i;
    static constexpr int kBytes = 16;
    static constexpr int rows_beside(int columns) { return columns >= 3 ? 2 : 4; }
    static constexpr int kSumColumns = 3;

    static V zero() { return _mm256_setzero_si256(); }
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
    static void pin(V& x) { asm("" : "+x"(x)); }
    static int64_t sum(V x) {
        int64_t four[4];
        add_sums(x, zero(), zero(), zero(), true, four);
        return four[0];
    }
    static void add_sums(V a, V b, V c, V d, bool fresh, int64_t* out) {
        const V all = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
        const __m128i sums =
            _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
        const __m256i old =
            fresh ? _mm256_setzero_si256() : _mm256_loadu_si256((const __m256i*)out);
        _mm256_storeu_si256((__m256i*)out, _mm256_add_epi64(old, _mm256_cvtepi32_epi64(sums)));
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
    static V load(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
    static void store(void* p, V x) { _mm256_storeu_si256((__m256i*)p, x); }
    static V weights(const int8_t* p) {
        const uint32_t low = static_cast<uint16_t>(static_cast<int16_t>(p[0]));
        const uint32_t high = static_cast<uint16_t>(static_cast<int16_t>(p[1]));
        return _mm256_set1_epi32(static_cast<int32_t>(low | high << 16));
    }
    static void store_strip(const V (&sum)[kVectors], int32_t* out) {
        store(out, _mm256_permute2x128_si256(sum[0], sum[1], 0x20));
        store(out + 8, _mm256_permute2x128_si256(sum[0], sum[1], 0x31));
        store(out + 16, _mm256_permute2x128_si256(sum[2], sum[3], 0x20));
        store(out + 24, _mm256_permute2x128_si256(sum[2], sum[3], 0x31));
    }
};

}  // namespace
