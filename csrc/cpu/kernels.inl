// The inner loops, each once, over the Vec of one instruction set. Included by kernels_<isa>.cpp
// after its vec_<isa>.h. Everything is in an anonymous namespace and nothing of the standard
// library that could leave a weak symbol is used: a weak symbol compiled with wide instructions
// may be the one that the linker keeps for everybody.

#include "kernels.h"
#include "u8/kernels.inl"

namespace {

using namespace diffgen;
using namespace diffgen::cpu;

#define DIFFGEN_UNROLL _Pragma("GCC unroll 16")

// Features are taken in blocks that keep a tile of queries in the first-level cache.
// The sums of products in float64 are at most that long, and those of differences.
constexpr int64_t kDoubleChain = 64;
constexpr int64_t kDifferenceChain = 16;
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

// ---- Products ----------------------------------------------------------------------------------

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

// ---- Differences -------------------------------------------------------------------------------

// |query - scale z|^2 of one row, or with an anchor (anchor - scale z) . (2 query - anchor - scale
// z).
template <typename T, bool Anchored>
double difference(const T* row, const double* query, const double* anchor, double scale,
                  int64_t features) {
    constexpr int kParts = 4;
    constexpr int64_t kStep = kParts * Vec::kDoubles;
    const typename Vec::D factor = Vec::set_d(scale);
    const typename Vec::D two = Vec::set_d(2.0);
    const typename Vec::D minus = Vec::set_d(-1.0);
    double total = 0.0;
    int64_t k = 0;
    // Two levels of sums: where all roundings go one way, their number counts.
    while (k + kStep <= features) {
        const int64_t stop = least(features, k + kDifferenceChain * kStep);
        typename Vec::D sum[kParts];
        DIFFGEN_UNROLL
        for (int p = 0; p < kParts; ++p) sum[p] = Vec::zero_d();
        for (; k + kStep <= stop; k += kStep) {
            DIFFGEN_UNROLL
            for (int p = 0; p < kParts; ++p) {
                const int64_t at = k + p * Vec::kDoubles;
                const typename Vec::D value = Vec::doubles(row + at);
                const typename Vec::D x = Vec::load_d(query + at);
                if constexpr (Anchored) {
                    const typename Vec::D a = Vec::load_d(anchor + at);
                    const typename Vec::D both = Vec::multiply_add(factor, value, a);
                    const typename Vec::D far =
                        Vec::multiply_add(both, minus, Vec::multiply_add(two, x, Vec::zero_d()));
                    sum[p] =
                        Vec::multiply_add(Vec::negate_multiply_add(factor, value, a), far, sum[p]);
                } else {
                    const typename Vec::D gap = Vec::negate_multiply_add(factor, value, x);
                    sum[p] = Vec::multiply_add(gap, gap, sum[p]);
                }
            }
        }
        total += Vec::sum(Vec::add(Vec::add(sum[0], sum[1]), Vec::add(sum[2], sum[3])));
    }
    for (; k < features; ++k) {
        const double value = scale * stored_value(row[k]);
        if constexpr (Anchored) {
            total += (anchor[k] - value) * (2.0 * query[k] - (anchor[k] + value));
        } else {
            total += (query[k] - value) * (query[k] - value);
        }
    }
    return total;
}

template <typename T>
double distance(const void* row, const double* query, double scale, int64_t features) {
    return difference<T, false>(static_cast<const T*>(row), query, nullptr, scale, features);
}

template <typename T>
double excess(const void* row, const double* query, const double* anchor, double scale,
              int64_t features) {
    return difference<T, true>(static_cast<const T*>(row), query, anchor, scale, features);
}

// ---- Weighted sums -----------------------------------------------------------------------------

inline typename Vec::F load(const float* p) {
    return Vec::load_f(p);
}
inline typename Vec::D load(const double* p) {
    return Vec::load_d(p);
}
inline typename Vec::F broadcast(float x) {
    return Vec::set_f(x);
}
inline typename Vec::D broadcast(double x) {
    return Vec::set_d(x);
}
template <typename T>
inline typename Vec::F values(const T* p, float) {
    return Vec::floats(p);
}
template <typename T>
inline typename Vec::D values(const T* p, double) {
    return Vec::doubles(p);
}

template <typename T, typename X, int Queries, int Width>
void accumulate_tile(const T* const* rows, int64_t begin, int64_t end, const X* const* weights,
                     int64_t feature, X* const* sums) {
    using V = decltype(broadcast(X()));
    V sum[Queries][Width];
    DIFFGEN_UNROLL
    for (int q = 0; q < Queries; ++q) {
        DIFFGEN_UNROLL
        for (int d = 0; d < Width; ++d) sum[q][d] = broadcast(X());
    }
    for (int64_t r = begin; r < end; ++r) {
        const T* const row = rows[r] + feature;
        V value[Width];
        DIFFGEN_UNROLL
        for (int d = 0; d < Width; ++d) value[d] = values(row + d * lanes<X>(), X());
        DIFFGEN_UNROLL
        for (int q = 0; q < Queries; ++q) {
            const V weight = Vec::pin(broadcast(weights[q][r]));
            DIFFGEN_UNROLL
            for (int d = 0; d < Width; ++d) {
                sum[q][d] = Vec::multiply_add(value[d], weight, sum[q][d]);
            }
        }
    }
    DIFFGEN_UNROLL
    for (int q = 0; q < Queries; ++q) {
        DIFFGEN_UNROLL
        for (int d = 0; d < Width; ++d) {
            X* const place = sums[q] + feature + d * lanes<X>();
            Vec::store(place, Vec::add(load(place), sum[q][d]));
        }
    }
}

template <typename T, typename X, int Width>
void accumulate_queries(const T* const* rows, int64_t begin, int64_t end, const X* const* weights,
                        int64_t query_count, int64_t feature, X* const* sums) {
    int64_t q = 0;
    if constexpr (Vec::kSumQueries >= 8) {
        for (; q + 8 <= query_count; q += 8) {
            accumulate_tile<T, X, 8, Width>(rows, begin, end, weights + q, feature, sums + q);
        }
    }
    for (; q + 4 <= query_count; q += 4) {
        accumulate_tile<T, X, 4, Width>(rows, begin, end, weights + q, feature, sums + q);
    }
    for (; q < query_count; ++q) {
        accumulate_tile<T, X, 1, Width>(rows, begin, end, weights + q, feature, sums + q);
    }
}

template <typename T, typename X>
void accumulate(const void* const* row_pointers, int64_t row_count, const X* const* weights,
                int64_t query_count, int64_t features, X* const* sums) {
    const T* const* rows = reinterpret_cast<const T* const*>(row_pointers);
    for (int64_t begin = 0; begin < row_count; begin += kSumChain) {
        const int64_t end = least(row_count, begin + kSumChain);
        int64_t feature = 0;
        if (query_count < 4) {
            constexpr int kWidth = Vec::sums_beside(1);
            for (; feature + kWidth * lanes<X>() <= features; feature += kWidth * lanes<X>()) {
                for (int64_t q = 0; q < query_count; ++q) {
                    accumulate_tile<T, X, 1, kWidth>(rows, begin, end, weights + q, feature,
                                                     sums + q);
                }
            }
        } else {
            constexpr int kWidth = Vec::sums_beside(Vec::kSumQueries);
            for (; feature + kWidth * lanes<X>() <= features; feature += kWidth * lanes<X>()) {
                accumulate_queries<T, X, kWidth>(rows, begin, end, weights, query_count, feature,
                                                 sums);
            }
        }
        for (; feature + lanes<X>() <= features; feature += lanes<X>()) {
            accumulate_queries<T, X, 1>(rows, begin, end, weights, query_count, feature, sums);
        }
        for (; feature < features; ++feature) {
            for (int64_t q = 0; q < query_count; ++q) {
                double sum = 0.0;
                for (int64_t r = begin; r < end; ++r) {
                    sum += static_cast<double>(weights[q][r]) * stored_value(rows[r][feature]);
                }
                sums[q][feature] += static_cast<X>(sum);
            }
        }
    }
}

// ---- Logits ------------------------------------------------------------------------------------

double logits(const double* products, const double* norms, const double* log_weights, int64_t count,
              const LogitTerms& terms, double* distances, double* out) {
    constexpr int kParts = 8;
    double largest[kParts];
    for (int p = 0; p < kParts; ++p) largest[p] = -__builtin_inf();
    int64_t r = 0;
    for (; r + kParts <= count; r += kParts) {
        for (int p = 0; p < kParts; ++p) {
            const double distance =
                terms.square - terms.twice * products[r + p] + terms.factor * norms[r + p];
            const double logit = log_weights[r + p] - terms.kappa * (distance - terms.left_out);
            distances[r + p] = distance;
            out[r + p] = logit;
            largest[p] = largest[p] < logit ? logit : largest[p];
        }
    }
    for (; r < count; ++r) {
        distances[r] = terms.square - terms.twice * products[r] + terms.factor * norms[r];
        out[r] = log_weights[r] - terms.kappa * (distances[r] - terms.left_out);
        largest[0] = largest[0] < out[r] ? out[r] : largest[0];
    }
    for (int p = 1; p < kParts; ++p) largest[0] = largest[0] < largest[p] ? largest[p] : largest[0];
    return largest[0];
}

void empty(float* low, int64_t count, double* sums) {
    int64_t k = 0;
    for (; k + Vec::kDoubles <= count; k += Vec::kDoubles) {
        Vec::store(sums + k, Vec::add(Vec::load_d(sums + k), Vec::doubles(low + k)));
    }
    for (; k < count; ++k) sums[k] += static_cast<double>(low[k]);
    for (k = 0; k < count; ++k) low[k] = 0.0f;
}

// ---- Exponentials ------------------------------------------------------------------------------

// exp by Cody-Waite reduction and a Taylor polynomial of degree 13 on [-ln2 / 2, ln2 / 2]:
// truncation under 2^-57, so the error is that of the rounding, a few units in the last place.
void exponentials(const double* logits, int64_t count, double reference, double cutoff,
                  double* weights) {
    constexpr double kLog2e = 1.4426950408889634074;
    constexpr double kLn2High = 6.93147180369123816490e-01;
    constexpr double kLn2Low = 1.90821492927058770002e-10;
    constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
    for (int64_t i = 0; i < count; ++i) {
        const double logit = logits[i];
        double x = logit - reference;
        x = x < -700.0 ? -700.0 : x;
        x = x > 700.0 ? 700.0 : x;
        const double shifted = x * kLog2e + kRound;
        const double n = shifted - kRound;
        const double f = (x - n * kLn2High) - n * kLn2Low;
        double p = 1.0 / 6227020800.0;
        p = p * f + 1.0 / 479001600.0;
        p = p * f + 1.0 / 39916800.0;
        p = p * f + 1.0 / 3628800.0;
        p = p * f + 1.0 / 362880.0;
        p = p * f + 1.0 / 40320.0;
        p = p * f + 1.0 / 5040.0;
        p = p * f + 1.0 / 720.0;
        p = p * f + 1.0 / 120.0;
        p = p * f + 1.0 / 24.0;
        p = p * f + 1.0 / 6.0;
        p = p * f + 0.5;
        p = p * f + 1.0;
        p = p * f + 1.0;
        uint64_t bits;
        __builtin_memcpy(&bits, &shifted, sizeof(bits));
        // The low bits of `shifted` hold n; moved to the exponent they are the factor 2^n.
        bits = (bits + 1023) << 52;
        double power;
        __builtin_memcpy(&power, &bits, sizeof(power));
        const double weight = p * power;
        weights[i] = logit < cutoff ? 0.0 : weight;
    }
}

// ---- The machine's ceilings ---------------------------------------------------------------------

double spin_fma(int64_t iterations) {
    constexpr int kParts = 12;
    typename Vec::F sum[kParts];
    DIFFGEN_UNROLL
    for (int p = 0; p < kParts; ++p) sum[p] = Vec::set_f(1.0f + static_cast<float>(p));
    const typename Vec::F factor = Vec::set_f(0.999f);
    const typename Vec::F term = Vec::set_f(1e-3f);
    for (int64_t i = 0; i < iterations; ++i) {
        DIFFGEN_UNROLL
        for (int p = 0; p < kParts; ++p) sum[p] = Vec::multiply_add(sum[p], factor, term);
    }
    float out[Vec::kFloats];
    double total = 0.0;
    for (int p = 0; p < kParts; ++p) {
        Vec::store(out, sum[p]);
        total += static_cast<double>(out[0]);
    }
    // The sum is used, so that the loop stays: it adds nothing to the count.
    const double operations = 2.0 * kParts * Vec::kFloats * static_cast<double>(iterations);
    return total > 0.0 ? operations : 0.0;
}

uint64_t read_words(const uint64_t* words, int64_t count) {
    uint64_t parts[32] = {};
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
        for (int p = 0; p < 32; ++p) parts[p] += words[i + p];
    }
    uint64_t total = 0;
    for (int p = 0; p < 32; ++p) total += parts[p];
    for (; i < count; ++i) total += words[i];
    return total;
}

// ---- The table ---------------------------------------------------------------------------------

template <typename T>
constexpr StorageKernels storage_kernels() {
    return {products<T, float>, products<T, double>,  distance<T>,
            excess<T>,          accumulate<T, float>, accumulate<T, double>};
}

constexpr Kernels make_kernels(const char* name) {
    return {name,
            Vec::kFloats,
            Vec::kExtraRoundings,
            {storage_kernels<uint8_t>(), storage_kernels<Half>(), storage_kernels<BFloat16>(),
             storage_kernels<float>(), storage_kernels<double>()},
            u8_loops::make_kernels(),
            logits,
            empty,
            exponentials,
            spin_fma,
            read_words};
}

}  // namespace
