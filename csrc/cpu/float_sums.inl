// Weighted sums of rows in floating point, over the Vec of one instruction set.

#include "float_products.inl"

namespace {

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

}  // namespace
