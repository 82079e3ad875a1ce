// What loops over 256-bit vectors of integers share, whatever multiplies the bytes.
#pragma once

#include <cstdint>

#include "../x86_intrinsics.h"

namespace {

struct Ints256 {
    using V = __m256i;

    static V zero() { return _mm256_setzero_si256(); }
    static V load(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
    static void store(void* p, V x) { _mm256_storeu_si256((__m256i*)p, x); }
    static void pin(V& x) { asm("" : "+x"(x)); }
    static int64_t sum(V x) {
        int64_t four[4];
        add_sums(x, zero(), zero(), zero(), true, four);
        return four[0];
    }
    // out[i] += the sum of each; the old value counts as zero where it is `fresh`.
    static void add_sums(V a, V b, V c, V d, bool fresh, int64_t* out) {
        const V all = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
        const __m128i sums =
            _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
        store(out, _mm256_add_epi64(fresh ? zero() : load(out), _mm256_cvtepi32_epi64(sums)));
    }
    // The halves of two vectors, first with first.
    static void store_halves(V a, V b, int32_t* low, int32_t* high) {
        store(low, _mm256_permute2x128_si256(a, b, 0x20));
        store(high, _mm256_permute2x128_si256(a, b, 0x31));
    }
};

}  // namespace
