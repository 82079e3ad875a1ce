// Marks functions that a GPU's threads may call too.
#pragma once

#ifdef __CUDACC__
#define DIFFGEN_HD __host__ __device__
#else
#define DIFFGEN_HD
#endif
