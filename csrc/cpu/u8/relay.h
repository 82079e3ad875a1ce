// Work taken in order by several threads, and its results merged in the same order by whichever
// thread comes: what a result is does not depend on who made it when.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#include "../buffer.h"
#include "posterior.h"

namespace diffgen::cpu::u8 {

// Room for the posteriors of a block of queries over one segment.
struct Slot {
    Slot(int64_t queries, int64_t features, int64_t top_k)
        : means(queries * features), parts(static_cast<size_t>(queries)) {
        for (int64_t i = 0; i < queries; ++i) {
            parts[i].mean = means.data() + i * features;
            if (top_k > 0) parts[i].nearest = Nearest(top_k);
        }
    }

    Buffer<double> means;
    std::vector<Posterior> parts;
    int64_t item = -1;  // what it holds the results of
};

class Relay {
  public:
    Relay(int64_t items, std::vector<Slot>& slots) : items_(items) {
        for (Slot& slot : slots) free_.push_back(&slot);
    }

    // The next item and room for its results; false where there is none left. The item is taken
    // after the room, so that the earliest open one is never without.
    template <typename Stopped>
    bool take(int64_t& item, Slot*& slot, Stopped stopped) {
        std::unique_lock<std::mutex> lock(mutex_);
        while (free_.empty() && next_ < items_ && !stopped()) change_.wait(lock);
        if (next_ >= items_ || stopped()) return false;
        slot = free_.back();
        free_.pop_back();
        item = next_++;
        return true;
    }

    // Hands results over; calls merge(item, slot) for all that are next, one at a time.
    template <typename Merge>
    void give(int64_t item, Slot* slot, Merge merge) {
        std::unique_lock<std::mutex> lock(mutex_);
        slot->item = item;
        waiting_.push_back(slot);
        while (Slot* ready = merging_ ? nullptr : next_in_order()) {
            merging_ = true;
            lock.unlock();
            merge(ready->item, *ready);
            lock.lock();
            merging_ = false;
            ++merged_;
            free_.push_back(ready);
            change_.notify_all();
        }
    }

    // After a stop: has those that wait for room see it.
    void wake() {
        const std::lock_guard<std::mutex> lock(mutex_);
        change_.notify_all();
    }

  private:
    Slot* next_in_order() {
        for (size_t i = 0; i < waiting_.size(); ++i) {
            if (waiting_[i]->item != merged_) continue;
            Slot* const found = waiting_[i];
            waiting_[i] = waiting_.back();
            waiting_.pop_back();
            return found;
        }
        return nullptr;
    }

    const int64_t items_;
    std::mutex mutex_;
    std::condition_variable change_;
    std::vector<Slot*> free_;
    std::vector<Slot*> waiting_;
    int64_t next_ = 0;
    int64_t merged_ = 0;
    bool merging_ = false;
};

}  // namespace diffgen::cpu::u8
