// What intrinsics.cuh offers, on a processor.
#pragma once

#include <cstdint>
#include <cstring>

#include "block.h"

#define DIFFGEN_DEVICE inline
#define DIFFGEN_KERNEL(threads, blocks) inline void
#define DIFFGEN_UNROLL_ALL
#define DIFFGEN_ROLLED

namespace diffgen::cuda {

using emulate::block;

struct alignas(16) Words {
    uint32_t w[4];
};

inline int thread_index() {
    return block().current().index;
}
inline int lane_index() {
    return block().current().lane;
}
inline int warp_index() {
    return block().current().warp;
}
inline int64_t block_index() {
    return block().index();
}

inline void sync_threads(int site = __builtin_LINE()) {
    block().barrier(site);
}
inline void sync_warp(int site = __builtin_LINE()) {
    block().warp_barrier(site);
}

// An element of shared memory, whose accesses the shadow sees.
template <typename T>
class SharedElement {
  public:
    explicit SharedElement(int at) : at_(at) {}
    SharedElement(const SharedElement&) = default;
    operator T() const {
        T value;
        block().read(at_, sizeof(T), &value);
        return value;
    }
    void operator=(T value) const { block().write(at_, sizeof(T), &value); }
    void operator=(const SharedElement& other) const { *this = static_cast<T>(other); }

  private:
    int at_;
};

template <typename T>
class Shared {
  public:
    explicit Shared(int at, int count) : at_(at), count_(count) {}
    SharedElement<T> operator[](int i) const {
        if (i < 0 || i >= count_) block().fail("shared element %d of %d", i, count_);
        return SharedElement<T>(at_ + i * static_cast<int>(sizeof(T)));
    }
    int at(int i) const { return at_ + i * static_cast<int>(sizeof(T)); }
    Words load_words(int i) const {
        Words words;
        block().read(at(i), 16, &words);
        return words;
    }
    void store_words(int i, Words words) const { block().write(at(i), 16, &words); }
    uint32_t load_word(int i) const {
        uint32_t word;
        block().read(at(i), 4, &word);
        return word;
    }

  private:
    int at_;
    int count_;
};

class SharedMemory {
  public:
    template <typename T>
    Shared<T> take(int count) {
        const Shared<T> taken(used_, count);
        used_ += (count * static_cast<int>(sizeof(T)) + 15) / 16 * 16;
        if (used_ > block().shared_bytes()) {
            block().fail("takes %d shared bytes of %d", used_, block().shared_bytes());
        }
        return taken;
    }

  private:
    int used_ = 0;
};

template <typename T>
inline T shuffle_xor(T value, int mask, int site = __builtin_LINE()) {
    struct {
        T value, result;
        int mask;
    } mine{value, value, mask};
    using Slot = decltype(mine);
    block().collective(site, &mine, [](void** slots) {
        for (int lane = 0; lane < emulate::kWarp; ++lane) {
            Slot& slot = *static_cast<Slot*>(slots[lane]);
            slot.result = static_cast<Slot*>(slots[lane ^ slot.mask])->value;
        }
    });
    return mine.result;
}

inline uint32_t ballot(bool predicate, int site = __builtin_LINE()) {
    uint32_t mine = predicate;
    block().collective(site, &mine, [](void** slots) {
        uint32_t all = 0;
        for (int lane = 0; lane < emulate::kWarp; ++lane) {
            all |= *static_cast<uint32_t*>(slots[lane]) << lane;
        }
        for (int lane = 0; lane < emulate::kWarp; ++lane)
            *static_cast<uint32_t*>(slots[lane]) = all;
    });
    return mine;
}

inline int count_bits(uint32_t word) {
    return __builtin_popcount(word);
}

inline int32_t dot4(uint32_t a, uint32_t b, int32_t sum) {
    for (int i = 0; i < 4; ++i) {
        sum += int32_t{static_cast<int8_t>(a >> 8 * i)} * static_cast<int8_t>(b >> 8 * i);
    }
    return sum;
}

inline uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; ++i) {
        out |= static_cast<uint32_t>(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    }
    return out;
}

inline Words load_global(const void* from) {
    if (reinterpret_cast<uintptr_t>(from) % 16) block().fail("16 bytes that are not aligned");
    Words words;
    std::memcpy(&words, from, 16);
    return words;
}

// Four 8 x 8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8
// and gets elements 2 (l % 4) and the next of row l / 4 of each.
inline void load_matrices(Shared<uint8_t> from, int at, uint32_t (&out)[4],
                          int site = __builtin_LINE()) {
    struct {
        Words row;
        uint32_t* out;
    } mine{from.load_words(at), out};
    using Slot = decltype(mine);
    block().collective(site, &mine, [](void** slots) {
        for (int lane = 0; lane < emulate::kWarp; ++lane) {
            for (int m = 0; m < 4; ++m) {
                static_cast<Slot*>(slots[lane])->out[m] =
                    static_cast<Slot*>(slots[8 * m + lane / 4])->row.w[lane % 4];
            }
        }
    });
}

// sums += a b: 16 x 32 times 32 x 8 signed bytes, spread over the warp as mma.sync.m16n8k32 has
// them.
inline void multiply_add(int32_t (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                         int site = __builtin_LINE()) {
    struct {
        int32_t* sums;
        const uint32_t* a;
        uint32_t b[2];
    } mine{sums, a, {b0, b1}};
    using Slot = decltype(mine);
    block().collective(site, &mine, [](void** slots) {
        int8_t left[16][32], right[8][32];
        for (int lane = 0; lane < emulate::kWarp; ++lane) {
            const Slot& slot = *static_cast<Slot*>(slots[lane]);
            const int g = lane / 4, t = lane % 4;
            for (int part = 0; part < 4; ++part) {
                std::memcpy(&left[g + part % 2 * 8][part / 2 * 16 + 4 * t], &slot.a[part], 4);
            }
            for (int part = 0; part < 2; ++part) {
                std::memcpy(&right[g][part * 16 + 4 * t], &slot.b[part], 4);
            }
        }
        for (int lane = 0; lane < emulate::kWarp; ++lane) {
            const Slot& slot = *static_cast<Slot*>(slots[lane]);
            for (int part = 0; part < 4; ++part) {
                const int8_t* const row = left[lane / 4 + part / 2 * 8];
                const int8_t* const column = right[lane % 4 * 2 + part % 2];
                int32_t sum = 0;
                for (int k = 0; k < 32; ++k) sum += int32_t{row[k]} * column[k];
                slot.sums[part] += sum;
            }
        }
    });
}

// 16 bytes of global memory into shared memory, or zeros and nothing is read; they are there after
// the wait for their group, for other threads after a barrier that follows it. `from` is an address
// of global memory in either case.
inline void copy_async(Shared<uint8_t> to, int at, const void* from, bool there) {
    if (from == nullptr) block().fail("a copy from nowhere");
    block().copy(to.at(at), there ? from : nullptr);
}
inline void commit_copies() {
    block().commit();
}
template <int Newest>
inline void wait_for_copies() {
    block().wait(Newest);
}

template <typename Argument>
const char* launch(void (*kernel)(Argument), int64_t blocks, int threads, int shared_bytes, void*,
                   const Argument& argument) {
    if (blocks == 0) return nullptr;
    return emulate::run_grid(blocks, threads, shared_bytes,
                             [kernel, &argument] { kernel(argument); });
}

}  // namespace diffgen::cuda
