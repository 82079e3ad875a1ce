// Exponential and logarithm as fixed sequences of float64 operations: the same bits everywhere.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace {

// exp(x) for x in [-700, 700], beyond that at the nearer end: Cody-Waite reduction and a Taylor
// polynomial of degree 13 on [-ln2 / 2, ln2 / 2], whose truncation is under 2^-57, so the error is
// that of the rounding, a few units in the last place.
DIFFGEN_HD inline double fixed_exp(double x) {
    constexpr double kLog2e = 1.4426950408889634074;
    constexpr double kLn2High = 6.93147180369123816490e-01;
    constexpr double kLn2Low = 1.90821492927058770002e-10;
    constexpr double kRound = 6755399441055744.0;  // 1.5 2^52
    const double above = x < -700.0 ? -700.0 : x;
    const double bounded = above > 700.0 ? 700.0 : above;
    const double shifted = bounded * kLog2e + kRound;
    const double n = shifted - kRound;
    const double f = (bounded - n * kLn2High) - n * kLn2Low;
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
    memcpy(&bits, &shifted, sizeof(bits));
    // The low bits of `shifted` hold n; moved to the exponent they are the factor 2^n.
    bits = (bits + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof(power));
    return p * power;
}

// log(x) for normal x > 0, error under 3e-16 of the larger of itself and 1.
DIFFGEN_HD inline double fixed_log(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof(bits));
    // m in [sqrt(1/2), sqrt(2)), x = m 2^e
    constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcdu;
    const int64_t exponent = static_cast<int64_t>(bits - kRootHalf) >> 52;
    bits -= static_cast<uint64_t>(exponent) << 52;
    double m;
    memcpy(&m, &bits, sizeof(m));
    // log m = 2 atanh(s), |s| < 0.1716
    const double s = (m - 1.0) / (m + 1.0);
    const double t = s * s;
    double p = 1.0 / 21.0;
    p = p * t + 1.0 / 19.0;
    p = p * t + 1.0 / 17.0;
    p = p * t + 1.0 / 15.0;
    p = p * t + 1.0 / 13.0;
    p = p * t + 1.0 / 11.0;
    p = p * t + 1.0 / 9.0;
    p = p * t + 1.0 / 7.0;
    p = p * t + 1.0 / 5.0;
    p = p * t + 1.0 / 3.0;
    p = p * t;
    const double log_m = 2.0 * s + 2.0 * s * p;
    return static_cast<double>(exponent) * 6.93147180559945286227e-01 + log_m;
}

// A whole number of magnitude below 2^51, from a double that is rounded to the nearest even one.
DIFFGEN_HD inline int64_t fixed_round(double x) {
    constexpr double kRound = 6755399441055744.0;
    const double shifted = x + kRound;
    int64_t bits, base;
    memcpy(&bits, &shifted, sizeof(bits));
    memcpy(&base, &kRound, sizeof(base));
    return bits - base;
}

}  // namespace
