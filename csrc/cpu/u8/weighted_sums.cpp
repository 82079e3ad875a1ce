#include "weighted_sums.h"

#include <algorithm>

namespace diffgen::cpu::u8 {

namespace {

// Features whose rows are interleaved at once, and columns of digits that share them.
constexpr int64_t kFeatureBlock = 1024;
constexpr int kColumnsAtOnce = 6;

}  // namespace

WeightedSums::WeightedSums(const Kernels& kernels, int64_t features, int64_t rows)
    : kernels_(kernels),
      features_(features),
      interleaved_(kernels.interleaved_bytes(rows, std::min(padded(features), kFeatureBlock))),
      column_sums_(kColumnsAtOnce * kFeatureBlock) {}

void WeightedSums::add(const uint8_t* const* rows, int64_t row_count, const WeightedSum* all,
                       int64_t count) {
    for (int64_t begin = 0; begin < features_; begin += kFeatureBlock) {
        const int64_t end = std::min(features_, begin + kFeatureBlock);
        kernels_.interleave(rows, row_count, begin, end, interleaved_.data());
        for (int64_t first = 0; first < count;) {
            const int8_t* digits[kColumnsAtOnce];
            int32_t* sums[kColumnsAtOnce];
            int columns = 0;
            int64_t last = first;
            for (; last < count && columns + all[last].count <= kColumnsAtOnce; ++last) {
                for (int j = 0; j < all[last].count; ++j, ++columns) {
                    digits[columns] = all[last].digits[j];
                    sums[columns] = column_sums_.data() + columns * kFeatureBlock;
                }
            }
            kernels_.weighted_sums(interleaved_.data(), row_count, end - begin, digits, columns,
                                   sums);
            columns = 0;
            for (; first < last; ++first) {
                const WeightedSum& sum = all[first];
                kernels_.fold(sums + columns, sum.count, row_count, end - begin, sum.centre,
                              sum.old, sum.fresh, sum.mean + begin);
                columns += sum.count;
            }
        }
    }
}

void WeightedSums::add_one(const uint8_t* const* rows, int64_t row_count, const WeightedSum& sum,
                           const uint8_t* const* ahead) {
    int32_t* sums[kWeightDigits];
    for (int j = 0; j < sum.count; ++j) sums[j] = column_sums_.data() + j * kFeatureBlock;
    for (int64_t begin = 0; begin < features_; begin += kFeatureBlock) {
        const int64_t end = std::min(features_, begin + kFeatureBlock);
        kernels_.weighted_rows(rows, row_count, begin, end, sum.digits, sum.count, ahead, sums);
        kernels_.fold(sums, sum.count, row_count, end - begin, sum.centre, sum.old, sum.fresh,
                      sum.mean + begin);
    }
}

}  // namespace diffgen::cpu::u8
