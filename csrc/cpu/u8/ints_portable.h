// Products of bytes widened to 32 bits, in the compiler's own vector types: any architecture.
#pragma once

#include <cstddef>
#include <cstdint>

namespace {

struct Ints {
    typedef int32_t V __attribute__((vector_size(16)));
    static constexpr int kBytes = 4;
    static constexpr int rows_beside(int columns) { return columns >= 3 ? 2 : 4; }
    static constexpr int kSumColumns = 3;

    static V zero() { return V{0, 0, 0, 0}; }
    static V row(const uint8_t* p) { return V{p[0], p[1], p[2], p[3]}; }
    static V row_end(const uint8_t* p, int64_t count) {
        uint8_t bytes[4] = {};
        __builtin_memcpy(bytes, p, static_cast<size_t>(count));
        return row(bytes);
    }
    static V column(const int8_t* p) { return V{p[0], p[1], p[2], p[3]}; }
    static V multiply_add(V sum, V row, V column) { return sum + row * column; }
    static void pin(V&) {}
    static int64_t sum(V x) { return int64_t{x[0]} + x[1] + x[2] + x[3]; }
    static void add_sums(V a, V b, V c, V d, bool fresh, int64_t* out) {
        const int64_t sums[4] = {sum(a), sum(b), sum(c), sum(d)};
        for (int i = 0; i < 4; ++i) out[i] = (fresh ? 0 : out[i]) + sums[i];
    }

    static constexpr int kRowsPerStep = 1;
    static constexpr int kVectors = 4;
    static constexpr int kStrip = 16;
    static void interleave(const uint8_t* const* rows, V (&out)[kVectors]) {
        for (int v = 0; v < kVectors; ++v) out[v] = row(rows[0] + 4 * v);
    }
    static V load(const void* p) {
        V x;
        __builtin_memcpy(&x, p, sizeof(x));
        return x;
    }
    static void store(void* p, V x) { __builtin_memcpy(p, &x, sizeof(x)); }
    static V weights(const int8_t* p) { return V{p[0], p[0], p[0], p[0]}; }
    static void store_strip(const V (&sum)[kVectors], int32_t* out) {
        for (int v = 0; v < kVectors; ++v) store(out + 4 * v, sum[v]);
    }
};

}  // namespace
