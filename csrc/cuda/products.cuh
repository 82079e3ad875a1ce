// What the products that were formed say of a row.
#pragma once

#include "rows.cuh"

namespace diffgen::cuda {

namespace {

// What bounds of distances and differences may be rounded by, relatively.
constexpr double kNearSlack = 1.0 + 0x1p-40;

// Of a query and a segment of the wave.
struct Pair {
    int64_t b;
    int64_t local;
    int64_t begin;  // of the segment, among the eligible rows
    int64_t count;

    DIFFGEN_DEVICE int64_t at(const Call& call) const { return b * call.wave + local; }
};

DIFFGEN_DEVICE Pair pair_of(const Call& call, int64_t index) {
    const int64_t segment = call.first + index % call.here;
    const int64_t begin = call.begins[segment];
    return {index / call.here, index % call.here, begin, call.begins[segment + 1] - begin};
}

// The product of the leading digits with a row less 128.
DIFFGEN_DEVICE int64_t product_of(const Call& call, const Pair& pair, int planes, int64_t r) {
    int64_t product = 0;
    for (int64_t j = 0; j < planes; ++j) {
        const int64_t column = j * call.problem.batch + pair.b;
        product =
            product * 256 + call.products[(column * call.wave + pair.local) * kSegmentRows + r];
    }
    return product;
}

DIFFGEN_DEVICE double log_weight_of(const Call& call, int64_t id) {
    return call.problem.log_weights ? call.problem.log_weights[id] : 0.0;
}

}  // namespace

}  // namespace diffgen::cuda
