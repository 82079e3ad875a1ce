#include "u8/ints_vnni.h"
// The integers come first: the loops are written over them.
#include "kernels.h"
#include "u8/kernels.inl"

namespace diffgen::cpu {

// Those of avx2 with other loops over 8-bit rows.
const Kernels& kernels_avxvnni() noexcept {
    static const Kernels kernels = []() noexcept {
        Kernels changed = kernels_avx2();
        changed.name = "avxvnni";
        changed.bytes = u8_loops::make_kernels();
        return changed;
    }();
    return kernels;
}

}  // namespace diffgen::cpu
