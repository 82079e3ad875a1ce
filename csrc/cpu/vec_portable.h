// Vectors of 4 floats and 2 doubles in the compiler's own vector types: any architecture.
#pragma once

#include "scalar_types.h"

namespace {

struct Vec {
    typedef float F __attribute__((vector_size(16)));
    typedef double D __attribute__((vector_size(16)));
    static constexpr int kFloats = 4;
    static constexpr int kDoubles = 2;
    static constexpr int kExtraRoundings = 2;
    static constexpr int rows_beside(int queries, bool is_float) {
        if (is_float) return queries == 4 ? 1 : 3;
        return queries == 4 ? 2 : 4;
    }
    static constexpr int kSumQueries = 4;
    static constexpr int sums_beside(int queries) { return queries == 4 ? 2 : 4; }

    static F zero_f() { return F{0, 0, 0, 0}; }
    static D zero_d() { return D{0, 0}; }
    static F set_f(float x) { return F{x, x, x, x}; }
    static D set_d(double x) { return D{x, x}; }
    static F load_f(const float* p) {
        F x;
        std::memcpy(&x, p, sizeof(x));
        return x;
    }
    static D load_d(const double* p) {
        D x;
        std::memcpy(&x, p, sizeof(x));
        return x;
    }
    static F pin(F x) { return x; }
    static D pin(D x) { return x; }
    static void store(float* p, F x) { std::memcpy(p, &x, sizeof(x)); }
    static void store(double* p, D x) { std::memcpy(p, &x, sizeof(x)); }
    static F add(F a, F b) { return a + b; }
    static D add(D a, D b) { return a + b; }
    static F multiply_add(F a, F b, F c) { return a * b + c; }
    static D multiply_add(D a, D b, D c) { return a * b + c; }
    static D negate_multiply_add(D a, D b, D c) { return c - a * b; }
    static constexpr int kFoldGroup = 1;
    static constexpr int kFoldLanes = 2;
    static void add_folded(const F (&x)[1], double* totals) {
        totals[0] += (double)(x[0][0] + x[0][2]);
        totals[1] += (double)(x[0][1] + x[0][3]);
    }
    static double sum(D x) { return x[0] + x[1]; }

    template <typename T>
    static F floats(const T* p) {
        return F{(float)stored_value(p[0]), (float)stored_value(p[1]), (float)stored_value(p[2]),
                 (float)stored_value(p[3])};
    }
    static F floats(const float* p) { return load_f(p); }

    template <typename T>
    static D doubles(const T* p) {
        return D{stored_value(p[0]), stored_value(p[1])};
    }
};

}  // namespace
