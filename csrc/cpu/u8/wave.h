// Some blocks of queries against consecutive segments, on several threads.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "../pool.h"
#include "relay.h"
#include "worker.h"

namespace diffgen::cpu::u8 {

// Queries that share one pass over the data.
constexpr int64_t kQueriesAtOnce = 64;
// Under so many products a second thread costs more than it does.
constexpr int64_t kProductsForThreads = 1'000'000;

// References that the segments merged so far reach, for each query of each block.
class Known {
  public:
    explicit Known(int64_t blocks) : values_(static_cast<size_t>(blocks * kQueriesAtOnce)) {
        forget();
    }
    void forget() {
        for (std::atomic<double>& value : values_) value.store(-INFINITY);
    }
    std::atomic<double>* of(int64_t block) { return values_.data() + block * kQueriesAtOnce; }

  private:
    std::vector<std::atomic<double>> values_;
};

// Takes the posterior of query i of a block over a segment, in the order of the segments, and says
// which reference that query is sure to reach.
using Merge = std::function<double(int64_t block, int64_t i, int64_t segment, Posterior& part)>;

// Rooms for results that wait, in which `threads` threads do not wait for one another.
inline int64_t room_count(int threads) {
    return threads == 1 ? 1 : threads + 2;
}

class Wave {
  public:
    Wave(const Segments& segments, StopSign& stop, const std::vector<QueryBlock>& blocks,
         std::vector<Slot>& rooms, std::vector<Worker>& workers, Known& known, const Merge& merge)
        : segments_(segments),
          stop_(stop),
          blocks_(blocks),
          workers_(workers),
          known_(known),
          merge_(merge),
          relay_(static_cast<int64_t>(blocks.size()) * segments.count(), rooms) {}

    void run(int threads) { run_tasks(threads, threads, stop_, this, work); }

  private:
    static void work(void* context, int64_t thread, bool on_caller) {
        Wave& wave = *static_cast<Wave*>(context);
        try {
            wave.work(thread, on_caller);
        } catch (...) {
            wave.stop_.fail();
            wave.relay_.wake();
            throw;
        }
    }

    void work(int64_t thread, bool on_caller) {
        const int64_t count = segments_.count();
        int64_t item = 0;
        Slot* slot = nullptr;
        while (relay_.take(item, slot, [this] { return stop_.stopped(); })) {
            const int64_t block = item / count;
            workers_[thread].run(blocks_[block], segments_, item % count, known_.of(block),
                                 slot->parts.data(), stop_, on_caller);
            if (stop_.stopped()) {
                relay_.wake();
                return;
            }
            relay_.give(item, slot, [this, count](int64_t done, Slot& part) {
                const int64_t of = done / count;
                for (int64_t i = 0; i < blocks_[of].count(); ++i) {
                    const double reached = merge_(of, i, done % count, part.parts[i]);
                    known_.of(of)[i].store(reached, std::memory_order_relaxed);
                }
            });
        }
    }

    const Segments& segments_;
    StopSign& stop_;
    const std::vector<QueryBlock>& blocks_;
    std::vector<Worker>& workers_;
    Known& known_;
    const Merge& merge_;
    Relay relay_;
};

}  // namespace diffgen::cpu::u8
