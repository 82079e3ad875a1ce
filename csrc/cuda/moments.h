// Mean and logsumexp over 8-bit rows on an NVIDIA GPU, in the bits of the CPU's engine.
//
// Free of CUDA's headers: any C++ code can call it. All pointers of a problem and of
// an output are the device's.
#pragma once

#include <cstdint>

#include "../problem.h"

namespace diffgen::cuda {

// How the work is done; no bit of a result depends on it.
struct Plan {
    int screening_digits = 0;    // leading digits of a query that screen rows, 0 to choose them
    int64_t batch = 0;           // queries worked on at once, 0 for as many as the scratch holds
    int64_t wave = 0;            // segments worked on at once, 0 for as many as the scratch holds
    int few = -1;                // products by the kernel for few queries: 1, by the other: 0
    int dense = -1;              // weighted sums by matrix products: 1, row by row: 0
    int rest = -1;               // the other digits of what is left by the kernel for many: 1, row
                                 // by row: 0
    bool always_masked = false;  // treat rows as if they were not aligned
};

// The most features: sums of their products are within 32 bits.
constexpr int64_t kMostFeatures = 131071;

// Bytes of device memory that a call works in besides its arguments: a quarter of a GiB at most,
// unless one query and one segment of rows need more. With less it takes more steps, down to the
// smallest.
int64_t scratch_bytes(const Problem& problem);
int64_t smallest_scratch_bytes(const Problem& problem);

// Starts the work on a stream and returns: null, or an error's text. Scratch memory begins at a
// multiple of 256 bytes, as the device's allocations do. A query that there is no answer to gets
// NaN. Needs 8-bit rows; computes neither functionals nor nearest rows.
const char* moments(const Problem& problem, const MomentsOutput& output, void* scratch,
                    int64_t scratch_size, void* stream, const Plan& plan = Plan());

struct DeviceState {
    int driver_version = 0;  // 1000 major + 10 minor; 0 without a driver
    int runtime_version = 0;
    int device_count = 0;
    const char* error = nullptr;  // why there is no device, or null
};

// What there is on this machine. Never fails: without a driver it says so.
DeviceState device_state();

}  // namespace diffgen::cuda
