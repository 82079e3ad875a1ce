// The structs every native kernel takes: raw pointers and sizes, no tensors, no Python.
#pragma once

#include <cstdint>

namespace diffgen {

enum class Storage : int { u8 = 0, f16 = 1, bf16 = 2, f32 = 3, f64 = 4 };
constexpr int kStorageCount = 5;

// Stored uint8 values are centred before they are multiplied, so that products stay small.
constexpr double stored_shift(Storage storage) {
    return storage == Storage::u8 ? 128.0 : 0.0;
}

// Queries against rows of a training set. Row i means offset + scale * stored_i.
struct Problem {
    const void* query;  // (batch, features), float or double
    bool query_is_double;
    int64_t batch;
    int64_t features;
    const double* sigma;     // (batch,)
    const double* alpha;     // (batch,) or null for ones
    const int64_t* exclude;  // (batch,) row id left out, -1 for none; or null
    const void* data;        // (count, features)
    Storage storage;
    int64_t count;
    const double* norms;        // (count,) |row - origin|^2 in the units of the data
    const double* log_weights;  // (count,) or null
    const int64_t* rows;        // (row_count,) ids of the eligible rows, or null for all
    int64_t row_count;
    double scale;
    double offset;

    double origin() const { return offset + stored_shift(storage) * scale; }
};

struct MomentsOutput {
    void* mean;  // (batch, features)
    bool mean_is_double;
    double* logsumexp;    // (batch,)
    double* functionals;  // (batch, 3): entropy, effective sample size, trace; or null
    int64_t top_k;
    int64_t* top_indices;   // (batch, top_k)
    double* top_distances;  // (batch, top_k), l2
};

struct CovarianceInput {
    const double* mean;       // (batch, features)
    const double* logsumexp;  // (batch,)
    const double* v;          // (batch, features)
    const double* radial;     // (batch,) or null for zeros
};

struct CovarianceOutput {
    double* product;  // (batch, features)
    double* moment;   // (batch, 2)
};

// Where a call stands: who may stop it, and with how many threads it runs.
struct Control {
    int threads = 1;
    // Called now and then on the calling thread; true stops the call.
    bool (*poll)(void* context) = nullptr;
    void* poll_context = nullptr;
    // Leading digits of a query that screen 8-bit rows, 0 to choose them. The result does not
    // depend on it.
    int screening_digits = 0;
};

enum class Status : int { ok, cancelled, nothing_eligible, too_few_eligible };

struct Outcome {
    Status status = Status::ok;
    int64_t query = -1;    // the query that `status` is about
    int64_t eligible = 0;  // its eligible rows, where they are too few
};

}  // namespace diffgen
