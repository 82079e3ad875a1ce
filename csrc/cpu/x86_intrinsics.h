// The compiler's intrinsics for x86-64.
#pragma once

// GCC 12 warns of its own headers: the undefined operands there are meant (its bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
