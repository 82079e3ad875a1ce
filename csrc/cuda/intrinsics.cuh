// What a GPU's threads do together, and what only its instructions can, each behind a function: the
// kernels are built from the same source by a C++ compiler, over emulate/intrinsics.h.
#pragma once

#ifndef __CUDACC__
#include "emulate/intrinsics.h"
#else

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>

#define DIFFGEN_DEVICE __device__ __forceinline__
// With so many threads a block, and registers for so many blocks at once.
#define DIFFGEN_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define DIFFGEN_UNROLL_ALL _Pragma("unroll")
#define DIFFGEN_ROLLED _Pragma("unroll 1")

namespace diffgen::cuda {

struct alignas(16) Words {
    uint32_t w[4];
};

namespace {

constexpr uint32_t kAllLanes = 0xffffffffu;
// What a block may have without being asked for.
constexpr int kPlainShared = 48 * 1024;

DIFFGEN_DEVICE int thread_index() {
    return static_cast<int>(threadIdx.x);
}
DIFFGEN_DEVICE int lane_index() {
    return static_cast<int>(threadIdx.x % 32);
}
DIFFGEN_DEVICE int warp_index() {
    return static_cast<int>(threadIdx.x / 32);
}
DIFFGEN_DEVICE int64_t block_index() {
    return blockIdx.x;
}

DIFFGEN_DEVICE void sync_threads() {
    __syncthreads();
}
DIFFGEN_DEVICE void sync_warp() {
    __syncwarp();
}

template <typename T>
class Shared {
  public:
    DIFFGEN_DEVICE explicit Shared(T* data) : data_(data) {}
    DIFFGEN_DEVICE T& operator[](int i) const { return data_[i]; }
    DIFFGEN_DEVICE T* at(int i) const { return data_ + i; }
    DIFFGEN_DEVICE Words load_words(int i) const {
        return *reinterpret_cast<const Words*>(data_ + i);
    }
    DIFFGEN_DEVICE uint32_t load_word(int i) const {
        return *reinterpret_cast<const uint32_t*>(data_ + i);
    }
    DIFFGEN_DEVICE void store_words(int i, Words words) const {
        *reinterpret_cast<Words*>(data_ + i) = words;
    }

  private:
    T* data_;
};

class SharedMemory {
  public:
    template <typename T>
    DIFFGEN_DEVICE Shared<T> take(int count) {
        extern __shared__ __align__(16) unsigned char bytes[];
        const Shared<T> taken(reinterpret_cast<T*>(bytes + used_));
        used_ += (count * static_cast<int>(sizeof(T)) + 15) / 16 * 16;
        return taken;
    }

  private:
    int used_ = 0;
};

template <typename T>
DIFFGEN_DEVICE T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(kAllLanes, value, mask);
}

DIFFGEN_DEVICE uint32_t ballot(bool predicate) {
    return __ballot_sync(kAllLanes, predicate);
}
DIFFGEN_DEVICE int count_bits(uint32_t word) {
    return __popc(word);
}

DIFFGEN_DEVICE int32_t dot4(uint32_t a, uint32_t b, int32_t sum) {
    return __dp4a(static_cast<int>(a), static_cast<int>(b), sum);
}

DIFFGEN_DEVICE uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t selector) {
    return __byte_perm(a, b, selector);
}

DIFFGEN_DEVICE Words load_global(const void* from) {
    const uint4 v = __ldg(static_cast<const uint4*>(from));
    return {{v.x, v.y, v.z, v.w}};
}

DIFFGEN_DEVICE uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Four 8 x 8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8
// and gets elements 2 (l % 4) and the next of row l / 4 of each.
DIFFGEN_DEVICE void load_matrices(Shared<uint8_t> from, int at, uint32_t (&out)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(from.at(at)))
                 : "memory");
}

// sums += a b: 16 x 32 times 32 x 8 signed bytes.
DIFFGEN_DEVICE void multiply_add(int32_t (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                 uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes of global memory into shared memory, or zeros and nothing is read; they are there after
// the wait for their group, for other threads after a barrier that follows it. `from` is an address
// of global memory in either case.
DIFFGEN_DEVICE void copy_async(Shared<uint8_t> to, int at, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to.at(at))),
                 "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}
DIFFGEN_DEVICE void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int Newest>
DIFFGEN_DEVICE void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Newest) : "memory");
}

// Null, or what failed and the error's name and number; the error is not left behind for others to
// find.
inline const char* text_of(cudaError_t error) {
    if (error == cudaSuccess) return nullptr;
    cudaGetLastError();
    static thread_local char text[128];
    std::snprintf(text, sizeof(text), "launching a kernel: %s, %d", cudaGetErrorName(error),
                  static_cast<int>(error));
    return text;
}

template <typename Argument>
const char* launch(void (*kernel)(Argument), int64_t blocks, int threads, int shared_bytes,
                   void* stream, Argument argument) {
    if (blocks == 0) return nullptr;
    const void* const entry = reinterpret_cast<const void*>(kernel);
    if (shared_bytes > kPlainShared) {
        const char* const error = text_of(
            cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
        if (error) return error;
    }
    void* arguments[] = {&argument};
    return text_of(cudaLaunchKernel(
        entry, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)), arguments,
        static_cast<size_t>(shared_bytes), static_cast<cudaStream_t>(stream)));
}

}  // namespace

}  // namespace diffgen::cuda

#endif
