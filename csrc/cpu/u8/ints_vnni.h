// Products of bytes by vpdpbusd, four to a lane: 64 bytes at once with AVX-512 VNNI, 32 with
// AVX-VNNI, or with AVX-512 VNNI where DIFFGEN_NARROW asks for its narrow form: a test runs that.
#pragma once

#include <cstdint>

#include "ints_256.h"

namespace {

#if defined(__AVX512VNNI__) && !defined(DIFFGEN_NARROW)

struct Ints {
    using V = __m512i;
    static constexpr int kBytes = 64;
    static constexpr int rows_beside(int columns) {
        return columns == 6 ? 4 : columns == 4 ? 6 : 8;
    }
    static constexpr int kSumColumns = 6;

    static V zero() { return _mm512_setzero_si512(); }
    static V row(const uint8_t* p) { return _mm512_loadu_si512(p); }
    static V row_end(const uint8_t* p, int64_t count) {
        return _mm512_maskz_loadu_epi8((uint64_t{1} << count) - 1, p);
    }
    static V column(const int8_t* p) { return _mm512_loadu_si512(p); }
    // As an instruction of its own: GCC 12 copies and spills the sums around the intrinsic.
    static V multiply_add(V sum, V row, V column) {
        asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(row), "v"(column));
        return sum;
    }
    static void pin(V& x) { asm("" : "+v"(x)); }
    static int64_t sum(V x) { return _mm512_reduce_add_epi32(x); }
    // out[i] += the sum of each; the old value counts as zero where it is `fresh`.
    static void add_sums(V a, V b, V c, V d, bool fresh, int64_t* out) {
        const V ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        const V cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        const V all =
            _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
        const __m256i half =
            _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
        const __m128i sums =
            _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
        const __m256i old =
            fresh ? _mm256_setzero_si256() : _mm256_loadu_si256((const __m256i*)out);
        _mm256_storeu_si256((__m256i*)out, _mm256_add_epi64(old, _mm256_cvtepi32_epi64(sums)));
    }

    // Four rows are interleaved byte by byte; a strip of features is four vectors.
    static constexpr int kRowsPerStep = 4;
    static constexpr int kVectors = 4;
    static constexpr int kStrip = 64;
    static void interleave(const uint8_t* const* rows, V (&out)[kVectors]) {
        const V a = row(rows[0]);
        const V b = row(rows[1]);
        const V c = row(rows[2]);
        const V d = row(rows[3]);
        const V ab_low = _mm512_unpacklo_epi8(a, b);
        const V ab_high = _mm512_unpackhi_epi8(a, b);
        const V cd_low = _mm512_unpacklo_epi8(c, d);
        const V cd_high = _mm512_unpackhi_epi8(c, d);
        out[0] = _mm512_unpacklo_epi16(ab_low, cd_low);
        out[1] = _mm512_unpackhi_epi16(ab_low, cd_low);
        out[2] = _mm512_unpacklo_epi16(ab_high, cd_high);
        out[3] = _mm512_unpackhi_epi16(ab_high, cd_high);
    }
    static V load(const void* p) { return _mm512_loadu_si512(p); }
    static void store(void* p, V x) { _mm512_storeu_si512(p, x); }
    static V weights(const int8_t* p) {
        int32_t four;
        __builtin_memcpy(&four, p, sizeof(four));
        return _mm512_set1_epi32(four);
    }
    // Sums of a strip in the order of its features: 128-bit lane l of vector v holds four from
    // 16 l + 4 v on.
    static void store_strip(const V (&sum)[kVectors], int32_t* out) {
        const V a = _mm512_shuffle_i32x4(sum[0], sum[1], 0x44);
        const V b = _mm512_shuffle_i32x4(sum[2], sum[3], 0x44);
        const V c = _mm512_shuffle_i32x4(sum[0], sum[1], 0xee);
        const V d = _mm512_shuffle_i32x4(sum[2], sum[3], 0xee);
        store(out, _mm512_shuffle_i32x4(a, b, 0x88));
        store(out + 16, _mm512_shuffle_i32x4(a, b, 0xdd));
        store(out + 32, _mm512_shuffle_i32x4(c, d, 0x88));
        store(out + 48, _mm512_shuffle_i32x4(c, d, 0xdd));
    }
};

#else

struct Ints : Ints256 {
    static constexpr int kBytes = 32;
    static constexpr int rows_beside(int columns) { return columns >= 3 ? 3 : 4; }
    static constexpr int kSumColumns = 3;

    static V row(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
    static V row_end(const uint8_t* p, int64_t count) {
        alignas(32) uint8_t bytes[32] = {};
        __builtin_memcpy(bytes, p, static_cast<size_t>(count));
        return row(bytes);
    }
    static V column(const int8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
    static V multiply_add(V sum, V row, V column) {
#if defined(__AVX512VNNI__)
        asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(row), "v"(column));
#else
        asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(row), "x"(column));
#endif
        return sum;
    }

    static constexpr int kRowsPerStep = 4;
    static constexpr int kVectors = 4;
    static constexpr int kStrip = 32;
    static void interleave(const uint8_t* const* rows, V (&out)[kVectors]) {
        const V a = row(rows[0]);
        const V b = row(rows[1]);
        const V c = row(rows[2]);
        const V d = row(rows[3]);
        const V ab_low = _mm256_unpacklo_epi8(a, b);
        const V ab_high = _mm256_unpackhi_epi8(a, b);
        const V cd_low = _mm256_unpacklo_epi8(c, d);
        const V cd_high = _mm256_unpackhi_epi8(c, d);
        out[0] = _mm256_unpacklo_epi16(ab_low, cd_low);
        out[1] = _mm256_unpackhi_epi16(ab_low, cd_low);
        out[2] = _mm256_unpacklo_epi16(ab_high, cd_high);
        out[3] = _mm256_unpackhi_epi16(ab_high, cd_high);
    }
    static V weights(const int8_t* p) {
        int32_t four;
        __builtin_memcpy(&four, p, sizeof(four));
        return _mm256_set1_epi32(four);
    }
    static void store_strip(const V (&sum)[kVectors], int32_t* out) {
        store_halves(sum[0], sum[1], out, out + 16);
        store_halves(sum[2], sum[3], out + 8, out + 24);
    }
};

#endif

}  // namespace
