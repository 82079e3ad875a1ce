// What a native op is called with: addresses and sizes, checked before they get here.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "problem.h"

namespace diffgen {

template <typename T>
const T* in(uintptr_t address) {
    return reinterpret_cast<const T*>(address);
}
template <typename T>
T* out(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// The arguments that both ops share, in the order of `Problem`, kept as one object so that a call
// passes few.
struct Arguments {
    uintptr_t query;
    bool query_is_double;
    int64_t batch, features;
    uintptr_t sigma, alpha, exclude, data;
    int storage;
    int64_t count;
    uintptr_t norms, log_weights, rows;
    int64_t row_count;
    double scale, offset;

    static Arguments make(uintptr_t query, bool query_is_double, int64_t batch, int64_t features,
                          uintptr_t sigma, uintptr_t alpha, uintptr_t exclude, uintptr_t data,
                          int storage, int64_t count, uintptr_t norms, uintptr_t log_weights,
                          uintptr_t rows, int64_t row_count, double scale, double offset) {
        if (storage < 0 || storage >= kStorageCount) {
            throw std::runtime_error("unknown storage type");
        }
        return {query,   query_is_double, batch, features,    sigma, alpha,     exclude, data,
                storage, count,           norms, log_weights, rows,  row_count, scale,   offset};
    }

    Problem problem() const {
        return {in<void>(query),
                query_is_double,
                batch,
                features,
                in<double>(sigma),
                in<double>(alpha),
                in<int64_t>(exclude),
                in<void>(data),
                static_cast<Storage>(storage),
                count,
                in<double>(norms),
                in<double>(log_weights),
                in<int64_t>(rows),
                row_count,
                scale,
                offset};
    }
};

}  // namespace diffgen
