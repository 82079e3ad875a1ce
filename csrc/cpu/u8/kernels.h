// What one instruction set offers for 8-bit rows: integer products and weighted sums, and the
// element-wise loops around them.
//
// Every table gives the same bits: sums are of integers, and floating-point loops are element by
// element or in a fixed order of lanes, without contraction.
#pragma once

#include <cstdint>

#include "../../u8/row_rules.h"

namespace diffgen::cpu::u8 {

using namespace diffgen::u8;

// The largest logit that seems and the largest that can be.
struct Screened {
    double seeming;
    double possible;
};

struct Kernels {
    // out[c][r] = sum_k rows[r][k] columns[c][k], exact. Columns are padded. `ahead` are as many
    // rows, read next: they are fetched into the cache meanwhile; null for none.
    void (*products)(const uint8_t* const* rows, int64_t row_count, const int8_t* const* columns,
                     int64_t column_count, int64_t features, const uint8_t* const* ahead,
                     int64_t* const* out);
    // Bytes that `interleave` writes for so many rows and features.
    int64_t (*interleaved_bytes)(int64_t row_count, int64_t features);
    // Features [begin, end) of rows, in the order that `weighted_sums` reads; begin is a multiple
    // of kPadding.
    void (*interleave)(const uint8_t* const* rows, int64_t row_count, int64_t begin, int64_t end,
                       void* interleaved);
    // sums[c][k] = sum_r digits[c][r] rows[r][k], exact, for k in [0, padded(features)). Digits are
    // padded with zeros to a multiple of four rows; there are at most 65,793 rows.
    void (*weighted_sums)(const void* interleaved, int64_t row_count, int64_t features,
                          const int8_t* const* digits, int64_t column_count, int32_t* const* sums);

    // The same from the rows themselves, for at most kWeightDigits columns: features [begin, end).
    // Of the rows `ahead` the first of each step is fetched meanwhile; null for none.
    void (*weighted_rows)(const uint8_t* const* rows, int64_t row_count, int64_t begin, int64_t end,
                          const int8_t* const* digits, int64_t column_count,
                          const uint8_t* const* ahead, int32_t* const* sums);

    // digits[j][k], j = 0 the leading one, of rint(unit x[k]), padded with zeros.
    void (*split)(const double* x, int64_t features, double unit, int8_t* const* digits,
                  Split* split);
    // products[r] = sum_j 256^(count - 1 - j) planes[j][r]
    void (*combine)(const int64_t* const* planes, int count, int64_t rows, int64_t* products);
    // logits[r] = log_weights[r] - (norm_factor norms[r] - product_factor (products[r] -
    // correction)); returns the largest.
    double (*logits)(const int64_t* products, const double* norms, const double* log_weights,
                     int64_t rows, int64_t correction, double norm_factor, double product_factor,
                     double* logits);
    // The bounds of each row.
    void (*bounds)(const int64_t* products, const double* norms, int64_t rows,
                   const BoundTerms& terms, double* distances, double* near);
    // logits[r], by the distance to x_p, and an upper bound of that by the distance to x.
    Screened (*screen)(const int64_t* products, const double* norms, const double* log_weights,
                       int64_t rows, const BoundTerms& terms, double kappa, double constant,
                       double* logits, double* upper);
    // |x - scale (row - 128)|^2 by differences.
    double (*distance)(const uint8_t* row, const double* x, double scale, int64_t features);
    // That less |x - scale (anchor - 128)|^2, without the rounding of either.
    double (*excess)(const uint8_t* row, const uint8_t* anchor, const double* x, double scale,
                     int64_t features);
    // weights[r] = exp(logits[r] - reference), 0 where logits[r] < cutoff. Returns their sum in
    // units of 1 / kMassUnit.
    int64_t (*weigh)(const double* logits, int64_t rows, double reference, double cutoff,
                     double* weights);
    // digits[j][r], j = 0 the leading one, of rint(unit weights[r]) with unit = 127 256^(count-1),
    // padded. Returns the sum of those integers.
    int64_t (*weight_digits)(const double* weights, int64_t rows, int count, int8_t* const* digits);
    // state[k] = old state[k] + fresh (sum_j 256^(count - 1 - j) sums[j][k] - centre); the state is
    // not read where `old` is zero.
    void (*fold)(const int32_t* const* sums, int count, int64_t row_count, int64_t features,
                 int64_t centre, double old, double fresh, double* state);
    // state[k] = old state[k] + fresh other[k]
    void (*merge)(const double* other, int64_t features, double old, double fresh, double* state);
    // Multiply-adds of 8-bit integers done by the fastest loop there is, for the machine's ceiling.
    int64_t (*spin)(int64_t iterations);
};

}  // namespace diffgen::cpu::u8
