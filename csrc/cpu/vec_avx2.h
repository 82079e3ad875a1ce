// Vectors of 8 floats and 4 doubles: AVX2, FMA, F16C.
#pragma once

#include "scalar_types.h"
#include "x86_intrinsics.h"

namespace {

struct Vec {
    using F = __m256;
    using D = __m256d;
    static constexpr int kFloats = 8;
    static constexpr int kDoubles = 4;
    static constexpr int kExtraRoundings = 1;
    static constexpr int rows_beside(int queries, bool is_float) {
        if (is_float) return queries == 4 ? 1 : 3;
        return queries == 4 ? 2 : 4;
    }
    static constexpr int kSumQueries = 4;
    static constexpr int sums_beside(int queries) { return queries == 4 ? 2 : 4; }

    static F zero_f() { return _mm256_setzero_ps(); }
    static D zero_d() { return _mm256_setzero_pd(); }
    static F set_f(float x) { return _mm256_set1_ps(x); }
    static D set_d(double x) { return _mm256_set1_pd(x); }
    static F load_f(const float* p) { return _mm256_loadu_ps(p); }
    static D load_d(const double* p) { return _mm256_loadu_pd(p); }
    // Keeps a value that is used several times in a register: GCC would load it again each time.
    static F pin(F x) {
        asm("" : "+x"(x));
        return x;
    }
    static D pin(D x) {
        asm("" : "+x"(x));
        return x;
    }
    static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
    static void store(double* p, D x) { _mm256_storeu_pd(p, x); }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static D add(D a, D b) { return _mm256_add_pd(a, b); }
    static F multiply_add(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static D multiply_add(D a, D b, D c) { return _mm256_fmadd_pd(a, b, c); }
    static D negate_multiply_add(D a, D b, D c) { return _mm256_fnmadd_pd(a, b, c); }
    // Adds a sum to its total: the upper half to the lower in float, then widened.
    static constexpr int kFoldGroup = 1;
    static constexpr int kFoldLanes = 4;
    static void add_folded(const F (&x)[1], double* totals) {
        const __m128 half =
            _mm_add_ps(_mm256_castps256_ps128(x[0]), _mm256_extractf128_ps(x[0], 1));
        store(totals, add(load_d(totals), _mm256_cvtps_pd(half)));
    }
    static double sum(D x) {
        const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
        return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
    }

    static F floats(const uint8_t* p) {
        const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
        return _mm256_cvtepi32_ps(_mm256_sub_epi32(wide, _mm256_set1_epi32(128)));
    }
    static F floats(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
    static F floats(const BFloat16* p) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    static F floats(const float* p) { return _mm256_loadu_ps(p); }
    static F floats(const double* p) {
        const __m128 low = _mm256_cvtpd_ps(_mm256_loadu_pd(p));
        const __m128 high = _mm256_cvtpd_ps(_mm256_loadu_pd(p + 4));
        return _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
    }

    static D doubles(const uint8_t* p) {
        int32_t four;
        std::memcpy(&four, p, sizeof(four));
        const __m128i wide = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(four));
        return _mm256_cvtepi32_pd(_mm_sub_epi32(wide, _mm_set1_epi32(128)));
    }
    static D doubles(const Half* p) {
        return _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)p)));
    }
    static D doubles(const BFloat16* p) {
        const __m128i wide = _mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i*)p));
        return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(wide, 16)));
    }
    static D doubles(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
    static D doubles(const double* p) { return _mm256_loadu_pd(p); }
};

}  // namespace
