// Calls the CUDA part over many shapes with a runtime that launches nothing, and writes a line for
// each launch: kernel, threads of a block, bytes of dynamic shared memory. Linked with --wrap for
// the functions below; all others are the real runtime's, and no pointer is followed.

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <map>
#include <string>

#include "../../csrc/cuda/moments.h"

namespace {

std::map<const void*, std::string>& kernels() {
    static std::map<const void*, std::string> names;
    return names;
}

}  // namespace

extern "C" {

void __real___cudaRegisterFunction(void** module, const char* host, char* device, const char* name,
                                   int limit, uint3* thread, uint3* block, dim3* block_size,
                                   dim3* grid_size, int* warp_size);

void __wrap___cudaRegisterFunction(void** module, const char* host, char* device, const char* name,
                                   int limit, uint3* thread, uint3* block, dim3* block_size,
                                   dim3* grid_size, int* warp_size) {
    kernels()[host] = name;
    __real___cudaRegisterFunction(module, host, device, name, limit, thread, block, block_size,
                                  grid_size, warp_size);
}

cudaError_t __wrap_cudaLaunchKernel(const void* kernel, dim3, dim3 block, void**, size_t shared,
                                    cudaStream_t) {
    const std::string& name = kernels().at(kernel);
    std::printf("%s %u %zu\n", name.c_str(), block.x * block.y * block.z, shared);
    return cudaSuccess;
}

cudaError_t __wrap_cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
    return cudaSuccess;
}

cudaError_t __wrap_cudaMemsetAsync(void*, int, size_t, cudaStream_t) {
    return cudaSuccess;
}

cudaError_t __wrap_cudaGetLastError() {
    return cudaSuccess;
}

}  // extern "C"

namespace {

// An address that is somebody else's: only the device would follow it.
template <typename T>
T* somewhere(uintptr_t offset = 0) {
    return reinterpret_cast<T*>((uintptr_t{1} << 40) + offset);
}

diffgen::Problem problem_of(int64_t batch, int64_t features, int64_t count) {
    diffgen::Problem problem{};
    problem.query = somewhere<void>();
    problem.batch = batch;
    problem.features = features;
    problem.sigma = somewhere<double>();
    problem.data = somewhere<void>();
    problem.storage = diffgen::Storage::u8;
    problem.count = count;
    problem.norms = somewhere<double>();
    problem.scale = 1.0;
    return problem;
}

bool record(diffgen::Problem problem, bool doubles, bool everything) {
    problem.query_is_double = doubles;
    if (everything) {
        problem.alpha = somewhere<double>();
        problem.exclude = somewhere<int64_t>();
        problem.log_weights = somewhere<double>();
        problem.rows = somewhere<int64_t>();
        problem.row_count = problem.count;
    }
    diffgen::MomentsOutput output{};
    output.mean = somewhere<void>();
    output.mean_is_double = doubles;
    output.logsumexp = somewhere<double>();
    for (int few = -1; few <= 1; ++few) {
        for (int dense = -1; dense <= 1; ++dense) {
            for (const bool masked : {false, true}) {
                diffgen::cuda::Plan plan;
                plan.few = few;
                plan.dense = dense;
                plan.always_masked = masked;
                const char* error =
                    diffgen::cuda::moments(problem, output, somewhere<void>(),
                                           diffgen::cuda::scratch_bytes(problem), nullptr, plan);
                if (error) {
                    std::fprintf(stderr, "moments must start, got %s\n", error);
                    return false;
                }
            }
        }
    }
    return true;
}

}  // namespace

int main() {
    for (const int64_t batch : {1, 8, 9, 64, 300}) {
        for (const int64_t features :
             {int64_t{1}, int64_t{784}, int64_t{12288}, diffgen::cuda::kMostFeatures}) {
            for (const int64_t count : {1, 5000, 100000}) {
                for (const bool doubles : {false, true}) {
                    for (const bool everything : {false, true}) {
                        if (!record(problem_of(batch, features, count), doubles, everything)) {
                            return 1;
                        }
                    }
                }
            }
        }
    }
    return 0;
}
