// The k nearest rows of a query: a heap by distance, ties to the lowest row id.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "buffer.h"

namespace diffgen::cpu {

struct Neighbour {
    double distance = INFINITY;  // squared
    int64_t id = -1;

    bool operator<(const Neighbour& other) const {
        return distance != other.distance ? distance < other.distance : id < other.id;
    }
};

class Nearest {
  public:
    Nearest() = default;
    explicit Nearest(int64_t k) : k_(k), heap_(k) {}

    // Squared distance above which a row cannot enter.
    double reach() const { return count_ < k_ ? INFINITY : heap_[0].distance; }

    void offer(Neighbour neighbour) {
        if (count_ < k_) {
            heap_[count_++] = neighbour;
            std::push_heap(heap_.data(), heap_.data() + count_);
        } else if (neighbour < heap_[0]) {
            std::pop_heap(heap_.data(), heap_.data() + count_);
            heap_[count_ - 1] = neighbour;
            std::push_heap(heap_.data(), heap_.data() + count_);
        }
    }

    void clear() { count_ = 0; }

    void absorb(const Nearest& other) {
        for (int64_t i = 0; i < other.count_; ++i) offer(other.heap_[i]);
    }

    // Nearest first. Ends the use as a heap.
    const Neighbour* sorted() {
        std::sort_heap(heap_.data(), heap_.data() + count_);
        return heap_.data();
    }
    int64_t count() const { return count_; }
    // In no order.
    const Neighbour& operator[](int64_t i) const { return heap_[i]; }

  private:
    int64_t k_ = 0;
    int64_t count_ = 0;
    Buffer<Neighbour> heap_;
};

}  // namespace diffgen::cpu
