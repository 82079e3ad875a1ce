// Vectors of 16 floats and 8 doubles: AVX-512 F, BW, DQ, VL.
#pragma once

#include "scalar_types.h"
#include "x86_intrinsics.h"

namespace {

struct Vec {
    using F = __m512;
    using D = __m512d;
    static constexpr int kFloats = 16;
    static constexpr int kDoubles = 8;
    static constexpr int kExtraRoundings = 2;
    // Rows of a register tile of products beside so many queries.
    static constexpr int rows_beside(int queries, bool is_float) {
        if (is_float) return queries == 4 ? 3 : queries == 2 ? 6 : 8;
        return queries == 4 ? 6 : 8;
    }
    // Queries of the largest tile of a weighted sum, and its vectors along the features.
    static constexpr int kSumQueries = 8;
    static constexpr int sums_beside(int queries) { return queries == 8 ? 3 : 8; }

    static F zero_f() { return _mm512_setzero_ps(); }
    static D zero_d() { return _mm512_setzero_pd(); }
    static F set_f(float x) { return _mm512_set1_ps(x); }
    static D set_d(double x) { return _mm512_set1_pd(x); }
    static F load_f(const float* p) { return _mm512_loadu_ps(p); }
    static D load_d(const double* p) { return _mm512_loadu_pd(p); }
    // Keeps a value that is used several times in a register: GCC would load it again each time.
    static F pin(F x) {
        asm("" : "+v"(x));
        return x;
    }
    static D pin(D x) {
        asm("" : "+v"(x));
        return x;
    }
    static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
    static void store(double* p, D x) { _mm512_storeu_pd(p, x); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static D add(D a, D b) { return _mm512_add_pd(a, b); }
    static F multiply_add(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static D multiply_add(D a, D b, D c) { return _mm512_fmadd_pd(a, b, c); }
    // c - a b
    static D negate_multiply_add(D a, D b, D c) { return _mm512_fnmadd_pd(a, b, c); }
    // Adds four sums to their totals, each folded to four lanes in float and widened.
    static constexpr int kFoldGroup = 4;
    static constexpr int kFoldLanes = 4;
    static void add_folded(const F (&x)[4], double* totals) {
        const F ab =
            add(_mm512_shuffle_f32x4(x[0], x[1], 0x44), _mm512_shuffle_f32x4(x[0], x[1], 0xee));
        const F cd =
            add(_mm512_shuffle_f32x4(x[2], x[3], 0x44), _mm512_shuffle_f32x4(x[2], x[3], 0xee));
        const F all = add(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
        const D low = _mm512_cvtps_pd(_mm512_castps512_ps256(all));
        const D high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(all, 1));
        store(totals, add(load_d(totals), low));
        store(totals + 8, add(load_d(totals + 8), high));
    }
    static double sum(D x) { return _mm512_reduce_add_pd(x); }

    static F floats(const uint8_t* p) {
        const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
        return _mm512_cvtepi32_ps(_mm512_sub_epi32(wide, _mm512_set1_epi32(128)));
    }
    static F floats(const Half* p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
    }
    static F floats(const BFloat16* p) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
    static F floats(const float* p) { return _mm512_loadu_ps(p); }
    static F floats(const double* p) {
        const __m256 low = _mm512_cvtpd_ps(_mm512_loadu_pd(p));
        const __m256 high = _mm512_cvtpd_ps(_mm512_loadu_pd(p + 8));
        return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
    }

    static D doubles(const uint8_t* p) {
        const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
        return _mm512_cvtepi32_pd(_mm256_sub_epi32(wide, _mm256_set1_epi32(128)));
    }
    static D doubles(const Half* p) {
        return _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)));
    }
    static D doubles(const BFloat16* p) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
        return _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16)));
    }
    static D doubles(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
    static D doubles(const double* p) { return _mm512_loadu_pd(p); }
};

}  // namespace
