#include "u8/ints_avx2.h"
#include "vec_avx512.h"
// The vectors come first: the loops are written over them.
#include "kernels.inl"

namespace diffgen::cpu {

const Kernels& kernels_avx512() noexcept {
    static constexpr Kernels kernels = make_kernels("avx512");
    return kernels;
}

}  // namespace diffgen::cpu
