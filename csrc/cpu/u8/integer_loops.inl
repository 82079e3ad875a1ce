// Products and weighted sums of 8-bit rows as integers, each loop once, over the Ints of one
// instruction set.

#include "../unroll.h"
#include "kernels.h"

namespace {
namespace u8_loops {

namespace u8 = diffgen::cpu::u8;

// A number as a type, for the loops that try several sizes.
template <int N>
struct Count {
    static constexpr int value = N;
};

// Features of a block: a tile of columns stays in the first-level cache, and no sum of as many
// products of bytes overflows.
constexpr int64_t kFeatureBlock = 4096;

// ---- Products ----------------------------------------------------------------------------------

// out[c][r] += over [begin, whole) and `rest` features more, less than a vector; the old value
// counts as zero where it is `fresh`.
template <int Rows, int Columns>
void products_tile(const uint8_t* const* rows, const int8_t* const* columns, int64_t begin,
                   int64_t whole, int64_t rest, const uint8_t* const* ahead, bool fresh,
                   int64_t* const* out) {
    using V = Ints::V;
    V sum[Rows][Columns];
    DIFFGEN_UNROLL
    for (int r = 0; r < Rows; ++r) {
        DIFFGEN_UNROLL
        for (int c = 0; c < Columns; ++c) sum[r][c] = Ints::zero();
    }
    for (int64_t k = begin; k < whole; k += Ints::kBytes) {
        V row[Rows];
        DIFFGEN_UNROLL
        for (int r = 0; r < Rows; ++r) {
            row[r] = Ints::row(rows[r] + k);
            if (ahead) __builtin_prefetch(ahead[r] + k, 0, 2);
        }
        DIFFGEN_UNROLL
        for (int c = 0; c < Columns; ++c) {
            V column = Ints::column(columns[c] + k);
            Ints::pin(column);
            DIFFGEN_UNROLL
            for (int r = 0; r < Rows; ++r) {
                sum[r][c] = Ints::multiply_add(sum[r][c], row[r], column);
            }
        }
    }
    if (rest > 0) {
        DIFFGEN_UNROLL
        for (int r = 0; r < Rows; ++r) {
            const V row = Ints::row_end(rows[r] + whole, rest);
            DIFFGEN_UNROLL
            for (int c = 0; c < Columns; ++c) {
                sum[r][c] = Ints::multiply_add(sum[r][c], row, Ints::column(columns[c] + whole));
            }
        }
    }
    DIFFGEN_UNROLL
    for (int c = 0; c < Columns; ++c) {
        if constexpr (Rows % 4 == 0) {
            DIFFGEN_UNROLL
            for (int r = 0; r < Rows; r += 4) {
                Ints::add_sums(sum[r][c], sum[r + 1][c], sum[r + 2][c], sum[r + 3][c], fresh,
                               out[c] + r);
            }
        } else {
            DIFFGEN_UNROLL
            for (int r = 0; r < Rows; ++r) {
                out[c][r] = (fresh ? 0 : out[c][r]) + Ints::sum(sum[r][c]);
            }
        }
    }
}

template <int Columns>
void products_rows(const uint8_t* const* rows, int64_t row_count, const int8_t* const* columns,
                   int64_t begin, int64_t whole, int64_t rest, const uint8_t* const* ahead,
                   bool fresh, int64_t* const* out) {
    constexpr int kRows = Ints::rows_beside(Columns);
    int64_t* here[Columns];
    for (int c = 0; c < Columns; ++c) here[c] = out[c];
    int64_t r = 0;
    const auto pass = [&](auto count, const uint8_t* const* next) {
        constexpr int kCount = decltype(count)::value;
        for (; r + kCount <= row_count; r += kCount) {
            products_tile<kCount, Columns>(rows + r, columns, begin, whole, rest,
                                           next ? next + r : nullptr, fresh, here);
            for (int c = 0; c < Columns; ++c) here[c] += kCount;
        }
    };
    pass(Count<kRows>(), ahead);
    if constexpr (kRows > 4) pass(Count<4>(), nullptr);
    if constexpr (kRows > 2) pass(Count<2>(), nullptr);
    pass(Count<1>(), nullptr);
}

void products(const uint8_t* const* rows, int64_t row_count, const int8_t* const* columns,
              int64_t column_count, int64_t features, const uint8_t* const* ahead,
              int64_t* const* out) {
    for (int64_t begin = 0; begin < features; begin += kFeatureBlock) {
        const int64_t left = features - begin;
        const int64_t length = left < kFeatureBlock ? left : kFeatureBlock;
        const int64_t rest = length % Ints::kBytes;
        const int64_t whole = begin + length - rest;
        int64_t c = 0;
        // Each of the column tiles would fetch the same rows: the first one does.
        const uint8_t* const* next = ahead;
        const auto pass = [&](auto count) {
            constexpr int kCount = decltype(count)::value;
            for (; c + kCount <= column_count; c += kCount) {
                products_rows<kCount>(rows, row_count, columns + c, begin, whole, rest, next,
                                      begin == 0, out + c);
                next = nullptr;
            }
        };
        if constexpr (Ints::kSumColumns >= 6) {
            pass(Count<6>());
            pass(Count<4>());
        }
        pass(Count<3>());
        pass(Count<2>());
        pass(Count<1>());
    }
}

// ---- Weighted sums -----------------------------------------------------------------------------

int64_t interleaved_bytes(int64_t row_count, int64_t features) {
    const int64_t steps = (row_count + Ints::kRowsPerStep - 1) / Ints::kRowsPerStep;
    return steps * (u8::padded(features) / Ints::kStrip) * Ints::kVectors *
           static_cast<int64_t>(sizeof(Ints::V));
}

// One step of whole strips: kRowsPerStep rows from feature k on, zeros for rows that are not there.
inline void step_of(const uint8_t* const* rows, int64_t row_count, int64_t first, int64_t k,
                    Ints::V (&step)[Ints::kVectors]) {
    static constexpr uint8_t kNothing[Ints::kStrip] = {};
    const uint8_t* here[Ints::kRowsPerStep];
    DIFFGEN_UNROLL
    for (int i = 0; i < Ints::kRowsPerStep; ++i) {
        here[i] = first + i < row_count ? rows[first + i] + k : kNothing;
    }
    Ints::interleave(here, step);
}

// The same of a strip of which only so many features are there.
void end_step_of(const uint8_t* const* rows, int64_t row_count, int64_t first, int64_t k,
                 int64_t inside, Ints::V (&step)[Ints::kVectors]) {
    uint8_t ends[Ints::kRowsPerStep][Ints::kStrip] = {};
    const uint8_t* here[Ints::kRowsPerStep];
    for (int i = 0; i < Ints::kRowsPerStep; ++i) {
        if (first + i < row_count) {
            for (int64_t j = 0; j < inside; ++j) ends[i][j] = rows[first + i][k + j];
        }
        here[i] = ends[i];
    }
    Ints::interleave(here, step);
}

// Laid out strip by strip of features, all steps of a strip together; read row by row.
void interleave(const uint8_t* const* rows, int64_t row_count, int64_t begin, int64_t end,
                void* interleaved) {
    constexpr int64_t kStepBytes = Ints::kVectors * static_cast<int64_t>(sizeof(Ints::V));
    const int64_t steps = (row_count + Ints::kRowsPerStep - 1) / Ints::kRowsPerStep;
    const int64_t last = begin + u8::padded(end - begin);
    for (int64_t s = 0; s < steps; ++s) {
        char* out = static_cast<char*>(interleaved) + s * kStepBytes;
        for (int64_t k = begin; k < last; k += Ints::kStrip, out += steps * kStepBytes) {
            Ints::V step[Ints::kVectors];
            if (k + Ints::kStrip <= end) {
                step_of(rows, row_count, s * Ints::kRowsPerStep, k, step);
            } else {
                end_step_of(rows, row_count, s * Ints::kRowsPerStep, k, end - k, step);
            }
            DIFFGEN_UNROLL
            for (int v = 0; v < Ints::kVectors; ++v) {
                Ints::store(out + v * sizeof(Ints::V), step[v]);
            }
        }
    }
}

template <int Columns>
inline void add_step(const Ints::V (&step)[Ints::kVectors], const int8_t* const* digits, int64_t r,
                     Ints::V (&sum)[Columns][Ints::kVectors]) {
    DIFFGEN_UNROLL
    for (int c = 0; c < Columns; ++c) {
        Ints::V weight = Ints::weights(digits[c] + r);
        Ints::pin(weight);
        DIFFGEN_UNROLL
        for (int v = 0; v < Ints::kVectors; ++v) {
            sum[c][v] = Ints::multiply_add(sum[c][v], step[v], weight);
        }
    }
}

template <int Columns>
void weighted_rows_some(const uint8_t* const* rows, int64_t row_count, int64_t begin, int64_t end,
                        const int8_t* const* digits, const uint8_t* const* ahead,
                        int32_t* const* sums) {
    constexpr int kVectors = Ints::kVectors;
    const int64_t whole = row_count - row_count % Ints::kRowsPerStep;
    for (int64_t k = begin; k < begin + u8::padded(end - begin); k += Ints::kStrip) {
        Ints::V sum[Columns][kVectors];
        DIFFGEN_UNROLL
        for (int c = 0; c < Columns; ++c) {
            DIFFGEN_UNROLL
            for (int v = 0; v < kVectors; ++v) sum[c][v] = Ints::zero();
        }
        int64_t r = 0;
        Ints::V step[kVectors];
        if (k + Ints::kStrip <= end) {
            for (; r < whole; r += Ints::kRowsPerStep) {
                if (ahead) __builtin_prefetch(ahead[r] + k, 0, 2);
                step_of(rows, whole, r, k, step);
                add_step<Columns>(step, digits, r, sum);
            }
            if (r < row_count) {
                step_of(rows, row_count, r, k, step);
                add_step<Columns>(step, digits, r, sum);
            }
        } else {
            for (; r < row_count; r += Ints::kRowsPerStep) {
                end_step_of(rows, row_count, r, k, end - k, step);
                add_step<Columns>(step, digits, r, sum);
            }
        }
        DIFFGEN_UNROLL
        for (int c = 0; c < Columns; ++c) Ints::store_strip(sum[c], sums[c] + (k - begin));
    }
}

void weighted_rows(const uint8_t* const* rows, int64_t row_count, int64_t begin, int64_t end,
                   const int8_t* const* digits, int64_t column_count, const uint8_t* const* ahead,
                   int32_t* const* sums) {
    int64_t c = 0;
    const auto pass = [&](auto count) {
        constexpr int kCount = decltype(count)::value;
        for (; c + kCount <= column_count; c += kCount) {
            weighted_rows_some<kCount>(rows, row_count, begin, end, digits + c, ahead, sums + c);
        }
    };
    if constexpr (Ints::kSumColumns >= 6) {
        pass(Count<5>());
        pass(Count<4>());
    }
    pass(Count<3>());
    pass(Count<2>());
    pass(Count<1>());
}

template <int Columns>
void weighted_strip(const char* interleaved, int64_t steps, const int8_t* const* digits,
                    int64_t feature, int32_t* const* sums) {
    using V = Ints::V;
    constexpr int kVectors = Ints::kVectors;
    V sum[Columns][kVectors];
    DIFFGEN_UNROLL
    for (int c = 0; c < Columns; ++c) {
        DIFFGEN_UNROLL
        for (int v = 0; v < kVectors; ++v) sum[c][v] = Ints::zero();
    }
    for (int64_t s = 0; s < steps; ++s) {
        V data[kVectors];
        DIFFGEN_UNROLL
        for (int v = 0; v < kVectors; ++v) {
            data[v] = Ints::load(interleaved);
            interleaved += sizeof(V);
        }
        add_step<Columns>(data, digits, s * Ints::kRowsPerStep, sum);
    }
    DIFFGEN_UNROLL
    for (int c = 0; c < Columns; ++c) Ints::store_strip(sum[c], sums[c] + feature);
}

void weighted_sums(const void* interleaved, int64_t row_count, int64_t features,
                   const int8_t* const* digits, int64_t column_count, int32_t* const* sums) {
    const int64_t steps = (row_count + Ints::kRowsPerStep - 1) / Ints::kRowsPerStep;
    const char* strip = static_cast<const char*>(interleaved);
    for (int64_t k = 0; k < u8::padded(features); k += Ints::kStrip) {
        int64_t c = 0;
        const auto pass = [&](auto count) {
            constexpr int kCount = decltype(count)::value;
            for (; c + kCount <= column_count; c += kCount) {
                weighted_strip<kCount>(strip, steps, digits + c, k, sums + c);
            }
        };
        if constexpr (Ints::kSumColumns >= 6) {
            pass(Count<6>());
            pass(Count<5>());
            pass(Count<4>());
        }
        pass(Count<3>());
        pass(Count<2>());
        pass(Count<1>());
        strip += steps * Ints::kVectors * static_cast<int64_t>(sizeof(Ints::V));
    }
}

// ---- The machine's ceiling ---------------------------------------------------------------------

int64_t spin(int64_t iterations) {
    constexpr int kParts = 12;
    Ints::V sum[kParts];
    DIFFGEN_UNROLL
    for (int p = 0; p < kParts; ++p) sum[p] = Ints::zero();
    const int8_t bytes[64] = {1};
    Ints::V factor = Ints::column(bytes);
    for (int64_t i = 0; i < iterations; ++i) {
        Ints::pin(factor);
        DIFFGEN_UNROLL
        for (int p = 0; p < kParts; ++p) sum[p] = Ints::multiply_add(sum[p], factor, factor);
    }
    int64_t total = 0;
    for (int p = 0; p < kParts; ++p) total += Ints::sum(sum[p]);
    // The sum is used, so that the loop stays: it adds nothing to the count.
    return total != 1 ? kParts * iterations * Ints::kBytes : 0;
}

}  // namespace u8_loops
}  // namespace
