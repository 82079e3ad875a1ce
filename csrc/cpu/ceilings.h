// What the machine can do at most, measured: the denominators of every share of a ceiling.
#pragma once

#include "kernels.h"

namespace diffgen::cpu {

// Bytes read from memory a second, by that many threads, out of a buffer far above the caches.
double measure_read_bandwidth(const Kernels& kernels, int threads);

// Float32 operations a second of independent fused multiply-adds.
double measure_float_peak(const Kernels& kernels, int threads);

// Operations a second of independent multiply-adds of 8-bit integers, two each.
double measure_integer_peak(const Kernels& kernels, int threads);

}  // namespace diffgen::cpu
