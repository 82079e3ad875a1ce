// Weighted sums of rows, added to the means of posteriors.
#pragma once

#include <cstdint>

#include "../buffer.h"
#include "kernels.h"

namespace diffgen::cpu::u8 {

// One of them: state = old state + fresh (sum of digits times rows - centre), see Kernels::fold.
struct WeightedSum {
    int8_t* digits[kWeightDigits];  // of each row's weight
    int count;                      // of digits; 0: nothing to add
    int64_t centre;
    double old;
    double fresh;
    double* mean;
};

class WeightedSums {
  public:
    // For at most so many rows at once.
    WeightedSums(const Kernels& kernels, int64_t features, int64_t rows);

    // Adds sums over the same rows, which are laid out once for all.
    void add(const uint8_t* const* rows, int64_t row_count, const WeightedSum* sums, int64_t count);
    // Adds one. Of as many rows that come next a part is fetched meanwhile; null for none.
    void add_one(const uint8_t* const* rows, int64_t row_count, const WeightedSum& sum,
                 const uint8_t* const* ahead);

  private:
    const Kernels& kernels_;
    int64_t features_;
    Buffer<char> interleaved_;     // a block of features of the rows
    Buffer<int32_t> column_sums_;  // of a block of features
};

}  // namespace diffgen::cpu::u8
