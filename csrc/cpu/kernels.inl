// The inner loops, each once, over the Vec of one instruction set. Included by kernels_<isa>.cpp
// after its vec_<isa>.h. Everything is in an anonymous namespace and nothing of the standard
// library that could leave a weak symbol is used: a weak symbol compiled with wide instructions
// may be the one that the linker keeps for everybody.

#include "../fixed_math.h"
#include "float_products.inl"
#include "float_sums.inl"
#include "u8/kernels.inl"

namespace {

// The sums of differences are at most that long.
constexpr int64_t kDifferenceChain = 16;

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

void exponentials(const double* logits, int64_t count, double reference, double cutoff,
                  double* weights) {
    for (int64_t i = 0; i < count; ++i) {
        const double weight = fixed_exp(logits[i] - reference);
        weights[i] = logits[i] < cutoff ? 0.0 : weight;
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
