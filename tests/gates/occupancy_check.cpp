// Blocks of a multiprocessor by NVIDIA's own calculator, which needs no GPU, over a grid of
// kernels: a line for each of threads, registers, bytes of shared memory, blocks.

#include <cuda_occupancy.h>

#include <cstdio>
#include <cstdlib>

int main(int count, char** words) {
    if (count != 6) return 2;
    cudaOccDeviceProp chip;
    chip.computeMajor = std::atoi(words[1]);
    chip.computeMinor = std::atoi(words[2]);
    chip.maxThreadsPerBlock = 1024;
    chip.maxThreadsPerMultiprocessor = 2048;
    chip.regsPerBlock = 65536;
    chip.regsPerMultiprocessor = 65536;
    chip.warpSize = 32;
    chip.sharedMemPerBlock = 48 * 1024;
    chip.sharedMemPerMultiprocessor = static_cast<size_t>(std::atoi(words[3]));
    chip.numSms = 100;
    chip.sharedMemPerBlockOptin = static_cast<size_t>(std::atoi(words[4]));
    chip.reservedSharedMemPerBlock = static_cast<size_t>(std::atoi(words[5]));
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    for (int threads = 32; threads <= 1024; threads += 96) {
        for (int registers = 16; registers <= 255; registers += 7) {
            for (int shared = 0; shared <= std::atoi(words[4]); shared += 12345) {
                cudaOccFuncAttributes kernel;
                kernel.maxThreadsPerBlock = 1024;
                kernel.numRegs = registers;
                kernel.sharedSizeBytes = 0;
                kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
                kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
                kernel.maxDynamicSharedSizeBytes = static_cast<size_t>(std::atoi(words[4]));
                kernel.numBlockBarriers = 1;
                cudaOccResult found;
                const cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(
                    &found, &chip, &kernel, &state, threads, static_cast<size_t>(shared));
                if (error != CUDA_OCC_SUCCESS) {
                    std::fprintf(stderr, "cuda_occupancy.h must answer, got %d\n", error);
                    return 1;
                }
                std::printf("%d %d %d %d\n", threads, registers, shared,
                            found.activeBlocksPerMultiprocessor);
            }
        }
    }
    return 0;
}
