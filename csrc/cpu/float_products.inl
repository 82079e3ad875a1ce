// Products of rows with queries in floating point, over the Vec of one instruction set.

#pragma once

#include "kernels.h"
#include "unroll.h"

namespace {

using namespace diffgen;
using namespace diffgen::cpu;

// The sums of products in float64 are at most that long.
constexpr int64_t kDoubleChain = 64;
// Features are taken in blocks that keep a tile of queries in the first-level cache.
constexpr int64_t kQueryBytes = 24576;

inline int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

template <typename X>
constexpr int lanes() {
    return sizeof(X) == sizeof(float) ? Vec::kFloats : Vec::kDoubles;
}

// A share of the bytes of some rows, fetched into the second-level cache a few lines at a time.
class Fetcher {
  public:
    Fetcher() = default;
    // Part `part` of `parts` of bytes [begin, end) of each row, spread over that many steps.
    Fetcher(const void* const* rows, int64_t row_count, int64_t begin, int64_t end, int64_t part,
            int64_t parts, int64_t steps)
        : rows_(rows), begin_(begin), end_(end) {
        const int64_t lines = (end - begin + 63) / 64;
        const int64_t first = row_count * lines * part / parts;
        left_ = row_count * lines * (part + 1) / parts - first;
        each_ = (left_ + steps - 1) / steps;
        rows_ += first / lines;
        at_ = begin + first % lines * 64;
    }

    void step() {
        const int64_t now = least(each_, left_);
        left_ -= now;
        for (int64_t i = 0; i < now; ++i) {
            __builtin_prefetch(static_cast<const char*>(*rows_) + at_, 0, 2);
            at_ += 64;
            if (at_ >= end_) {
                at_ = begin_;
                ++rows_;
            }
        }
    }

  private:
    const void* const* rows_ = nullptr;
    int64_t begin_ = 0;
    int64_t end_ = 0;
    int64_t at_ = 0;
    int64_t left_ = 0;
    int64_t each_ = 0;
};

// One vector of features more in the sums of a tile.
template <typename T, int Rows, int Queries>
inline void products_step(const T* const* rows, const float* const* queries, int64_t k,
                          typename Vec::F (&sum)[Rows * Queries]) {
    typename Vec::F row[Rows];
    DIFFGEN_UNROLL
    for (int r = 0; r < Rows; ++r) row[r] = Vec::floats(rows[r] + k);
    DIFFGEN_UNROLL
    for (int q = 0; q < Queries; ++q) {
        const typename Vec::F query = Vec::pin(Vec::load_f(queries[q] + k));
        DIFFGEN_UNROLL
        for (int r = 0; r < Rows; ++r) {
            sum[r * Queries + q] = Vec::multiply_add(row[r], query, sum[r * Queries + q]);
        }
    }
}

// out[q][r] += sum over [begin, end) of z[r][k] query[q][k]; end - begin is a multiple of a vector.
// Two sums per row and query take turns, so that a promotion to float64 is paid half as often.
template <typename T, int Rows, int Queries>
void products_tile(const T* const* rows, const float* const* queries, int64_t begin, int64_t end,
                   Fetcher fetcher, double* const* out) {
    constexpr int kPairs = Rows * Queries;
    constexpr int kTotals = (kPairs + Vec::kFoldGroup - 1) / Vec::kFoldGroup * Vec::kFoldGroup;
    alignas(64) double total[kTotals * Vec::kFoldLanes] = {};
    for (int64_t k = begin; k < end;) {
        const int64_t stop = least(end, k + kChainVectors * Vec::kFloats);
        fetcher.step();
        typename Vec::F sum[kPairs];
        typename Vec::F other[kPairs];
        DIFFGEN_UNROLL
        for (int i = 0; i < kPairs; ++i) sum[i] = other[i] = Vec::zero_f();
        for (; k + 2 * Vec::kFloats <= stop; k += 2 * Vec::kFloats) {
            products_step<T, Rows, Queries>(rows, queries, k, sum);
            products_step<T, Rows, Queries>(rows, queries, k + Vec::kFloats, other);
        }
        if (k < stop) {
            products_step<T, Rows, Queries>(rows, queries, k, sum);
            k += Vec::kFloats;
        }
        // The totals live in memory: GCC would keep them in registers and spill the sums.
        asm volatile("" : : "r"(total) : "memory");
        DIFFGEN_UNROLL
        for (int i = 0; i < kTotals; i += Vec::kFoldGroup) {
            typename Vec::F group[Vec::kFoldGroup];
            DIFFGEN_UNROLL
            for (int j = 0; j < Vec::kFoldGroup; ++j) {
                group[j] = i + j < kPairs ? Vec::add(sum[i + j < kPairs ? i + j : 0],
                                                     other[i + j < kPairs ? i + j : 0])
                                          : Vec::zero_f();
            }
            Vec::add_folded(group, total + i * Vec::kFoldLanes);
        }
    }
    for (int r = 0; r < Rows; ++r) {
        for (int q = 0; q < Queries; ++q) {
            const double* const parts = total + (r * Queries + q) * Vec::kFoldLanes;
            double whole = parts[0];
            for (int lane = 1; lane < Vec::kFoldLanes; ++lane) whole += parts[lane];
            out[q][r] += whole;
        }
    }
}

template <typename T, int Rows, int Queries>
void products_tile(const T* const* rows, const double* const* queries, int64_t begin, int64_t end,
                   Fetcher fetcher, double* const* out) {
    typename Vec::D sum[Rows][Queries];
    DIFFGEN_UNROLL
    for (int r = 0; r < Rows; ++r) {
        DIFFGEN_UNROLL
        for (int q = 0; q < Queries; ++q) sum[r][q] = Vec::zero_d();
    }
    for (int64_t k = begin; k < end;) {
        const int64_t stop = least(end, k + kChainVectors * Vec::kDoubles);
        fetcher.step();
        for (; k < stop; k += Vec::kDoubles) {
            typename Vec::D row[Rows];
            DIFFGEN_UNROLL
            for (int r = 0; r < Rows; ++r) row[r] = Vec::doubles(rows[r] + k);
            DIFFGEN_UNROLL
            for (int q = 0; q < Queries; ++q) {
                const typename Vec::D query = Vec::pin(Vec::load_d(queries[q] + k));
                DIFFGEN_UNROLL
                for (int r = 0; r < Rows; ++r) {
                    sum[r][q] = Vec::multiply_add(row[r], query, sum[r][q]);
                }
            }
        }
    }
    DIFFGEN_UNROLL
    for (int r = 0; r < Rows; ++r) {
        DIFFGEN_UNROLL
        for (int q = 0; q < Queries; ++q) out[q][r] += Vec::sum(sum[r][q]);
    }
}

// All rows against one tile of queries, over one block of features.
template <typename T, typename X, int Queries>
void products_rows(const T* const* rows, int64_t row_count, const X* const* queries, int64_t begin,
                   int64_t end, const void* const* ahead, int64_t part, int64_t parts,
                   double* const* out) {
    constexpr int kRows = Vec::rows_beside(Queries, sizeof(X) == sizeof(float));
    double* here[Queries];
    for (int q = 0; q < Queries; ++q) here[q] = out[q];
    int64_t r = 0;
    for (; r + kRows <= row_count; r += kRows) {
        Fetcher fetcher;
        if (ahead) {
            constexpr int64_t kSize = sizeof(T);
            const int64_t steps = (end - begin) / (kChainVectors * lanes<X>()) + 1;
            fetcher = Fetcher(ahead + r, kRows, begin * kSize, end * kSize, part, parts, steps);
        }
        products_tile<T, kRows, Queries>(rows + r, queries, begin, end, fetcher, here);
        for (int q = 0; q < Queries; ++q) here[q] += kRows;
    }
    for (; r < row_count; ++r) {
        products_tile<T, 1, Queries>(rows + r, queries, begin, end, Fetcher(), here);
        for (int q = 0; q < Queries; ++q) here[q] += 1;
    }
}

template <typename T, typename X>
void products(const void* const* row_pointers, int64_t row_count, const X* const* queries,
              int64_t query_count, int64_t features, const void* const* ahead, double* const* out) {
    const T* const* rows = reinterpret_cast<const T* const*>(row_pointers);
    for (int64_t q = 0; q < query_count; ++q) {
        for (int64_t r = 0; r < row_count; ++r) out[q][r] = 0.0;
    }
    const int64_t whole = features - features % lanes<X>();
    const int64_t tile = least(query_count, 4);
    const int64_t parts = query_count / 4 + query_count % 4 / 2 + query_count % 2;
    const int64_t chain = kChainVectors * lanes<X>();
    int64_t block = kQueryBytes / static_cast<int64_t>(sizeof(X)) / (tile > 0 ? tile : 1);
    block = block < chain ? chain : block - block % chain;
    if (sizeof(X) == sizeof(double)) block = least(block, kDoubleChain * lanes<X>());
    for (int64_t begin = 0; begin < whole; begin += block) {
        const int64_t end = least(whole, begin + block);
        int64_t q = 0;
        int64_t part = 0;
        for (; q + 4 <= query_count; q += 4) {
            products_rows<T, X, 4>(rows, row_count, queries + q, begin, end, ahead, part++, parts,
                                   out + q);
        }
        if (q + 2 <= query_count) {
            products_rows<T, X, 2>(rows, row_count, queries + q, begin, end, ahead, part++, parts,
                                   out + q);
            q += 2;
        }
        if (q < query_count) {
            products_rows<T, X, 1>(rows, row_count, queries + q, begin, end, ahead, part++, parts,
                                   out + q);
        }
    }
    for (int64_t q = 0; whole < features && q < query_count; ++q) {
        for (int64_t r = 0; r < row_count; ++r) {
            double rest = 0.0;
            for (int64_t k = whole; k < features; ++k) {
                rest += stored_value(rows[r][k]) * static_cast<double>(queries[q][k]);
            }
            out[q][r] += rest;
        }
    }
}

}  // namespace
