// What one instruction set offers: the inner loops, as a table of functions.
//
// All of them work in stored units, z = stored - shift (128 for uint8, 0 for floats), on rows and
// queries given by pointers, so that a gathered class and a contiguous block look alike.
#pragma once

#include <cstdint>

#include "../problem.h"
#include "u8/kernels.h"

namespace diffgen::cpu {

// Vectors of float32 products, shared by two sums, before they are promoted to float64. Numerics
// depend on it: see docs/numerics.md and chain_weights in query.cpp.
constexpr int kChainVectors = 6;
// Rows of float32 accumulation before the weighted sum is added to the accumulator.
constexpr int kSumChain = 24;

struct StorageKernels {
    // out[q][r] = sum_k z[r][k] * query[q][k]; float32 in short chains, promoted to float64.
    // `ahead` are as many rows, read next: they are fetched into the cache meanwhile; null for
    // none.
    void (*products_f32)(const void* const* rows, int64_t row_count, const float* const* queries,
                         int64_t query_count, int64_t features, const void* const* ahead,
                         double* const* out);
    // The same in float64 throughout.
    void (*products_f64)(const void* const* rows, int64_t row_count, const double* const* queries,
                         int64_t query_count, int64_t features, const void* const* ahead,
                         double* const* out);
    // |query - scale z|^2 by differences in float64.
    double (*distance)(const void* row, const double* query, double scale, int64_t features);
    // That less |query - anchor|^2, as (anchor - scale z) . (2 query - anchor - scale z).
    double (*excess)(const void* row, const double* query, const double* anchor, double scale,
                     int64_t features);
    // sums[q][k] += sum_r weights[q][r] * z[r][k]
    void (*accumulate_f32)(const void* const* rows, int64_t row_count, const float* const* weights,
                           int64_t query_count, int64_t features, float* const* sums);
    void (*accumulate_f64)(const void* const* rows, int64_t row_count, const double* const* weights,
                           int64_t query_count, int64_t features, double* const* sums);
};

struct LogitTerms {
    double square;
    double twice;
    double factor;
    double kappa;
    double left_out;
};

struct Kernels {
    const char* name;
    // Float lanes of a vector: with kChainVectors, which products share a chain.
    int lanes;
    // Float additions that fold a finished sum, and the rounding of a product that is not fused.
    int extra_roundings;
    StorageKernels storage[kStorageCount];
    u8::Kernels bytes;  // the moments of 8-bit rows
    // distances[r] = square - twice products[r] + factor norms[r], and the logits that go with
    // them, log_weights[r] - kappa (distances[r] - left_out). Returns the largest logit.
    double (*logits)(const double* products, const double* norms, const double* log_weights,
                     int64_t count, const LogitTerms& terms, double* distances, double* logits);
    // sums[k] += low[k], which becomes zero.
    void (*empty)(float* low, int64_t count, double* sums);
    // weights[i] = exp(logits[i] - reference), 0 where logits[i] < cutoff.
    void (*exponentials)(const double* logits, int64_t count, double reference, double cutoff,
                         double* weights);
    // Floating-point operations done by the fastest loop there is, for the machine's ceiling.
    double (*spin_fma)(int64_t iterations);
    // Sum of 64-bit words, for the machine's read bandwidth.
    uint64_t (*read_words)(const uint64_t* words, int64_t count);
};

#define DIFFGEN_ISA(isa, architecture, flags) const Kernels& kernels_##isa() noexcept;
#include "isa_list.h"
#undef DIFFGEN_ISA

}  // namespace diffgen::cpu
