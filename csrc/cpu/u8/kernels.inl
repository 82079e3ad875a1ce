// The loops over 8-bit rows and their table. Included by kernels_<isa>.cpp after its ints header.
// As in ../kernels.inl, nothing may leave a weak symbol.

#include "integer_loops.inl"
#include "real_loops.inl"

namespace {
namespace u8_loops {

constexpr u8::Kernels make_kernels() {
    return {products,      interleaved_bytes,
            interleave,    weighted_sums,
            weighted_rows, split,
            combine,       logits,
            bounds,        screen,
            distance,      excess,
            weigh,         weight_digits,
            fold,          merge,
            spin};
}

}  // namespace u8_loops
}  // namespace
