#include "u8/ints_portable.h"
#include "vec_portable.h"
// The vectors come first: the loops are written over them.
#include "kernels.inl"

namespace diffgen::cpu {

const Kernels& kernels_portable() noexcept {
    static constexpr Kernels kernels = make_kernels("portable");
    return kernels;
}

}  // namespace diffgen::cpu
