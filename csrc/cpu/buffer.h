// Memory aligned to cache lines, given back by itself.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

namespace diffgen::cpu {

template <typename T>
class Buffer {
  public:
    Buffer() = default;
    // Zeros.
    explicit Buffer(int64_t count) {
        if (count <= 0) return;
        const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
        data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
        if (data_ == nullptr) throw std::bad_alloc();
        for (int64_t i = 0; i < count; ++i) data_[i] = T();
    }
    Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        return *this;
    }
    ~Buffer() { std::free(data_); }

    T* data() { return data_; }
    const T* data() const { return data_; }
    T& operator[](int64_t i) { return data_[i]; }
    const T& operator[](int64_t i) const { return data_[i]; }

  private:
    T* data_ = nullptr;
};

// Distance between the rows of a matrix with many rows: a multiple of a cache line that keeps
// rows of a power-of-two length from falling on the same sets of the caches.
template <typename T>
int64_t padded_stride(int64_t features) {
    constexpr int64_t kLine = 64 / sizeof(T);
    const int64_t lines = (features + kLine - 1) / kLine;
    return (lines + 3 + (lines % 2)) * kLine;
}

}  // namespace diffgen::cpu
