// What there is on this machine.

#include <cuda_runtime_api.h>

#include <cstdio>

#include "moments.h"

namespace diffgen::cuda {

DeviceState device_state() {
    DeviceState state;
    cudaRuntimeGetVersion(&state.runtime_version);
    cudaError_t error = cudaDriverGetVersion(&state.driver_version);
    if (error == cudaSuccess) error = cudaGetDeviceCount(&state.device_count);
    if (error != cudaSuccess) {
        state.device_count = 0;
        static thread_local char text[128];
        std::snprintf(text, sizeof(text), "%s, %d", cudaGetErrorName(error),
                      static_cast<int>(error));
        state.error = text;
        // The error stays with this call.
        cudaGetLastError();
    } else if (state.device_count == 0) {
        state.error = "no CUDA-capable device is detected";
    }
    return state;
}

}  // namespace diffgen::cuda
