// Loops over registers are unrolled whole, or their arrays stay in memory.
#pragma once

#define DIFFGEN_UNROLL _Pragma("GCC unroll 16")
