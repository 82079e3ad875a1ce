// A pool of threads of its own: OpenMP's hangs in a forked child.
#pragma once

#include <atomic>
#include <cstdint>

#include "../problem.h"

namespace diffgen::cpu {

// Asked by every task between its steps: whether the call was stopped. The calling thread also
// polls its Control here, at most every 20 ms.
class StopSign {
  public:
    explicit StopSign(const Control& control) : control_(control) {}
    bool stopped() const { return stopped_.load(std::memory_order_relaxed); }
    // As `stopped`; polls when it runs on the calling thread.
    bool check(bool on_caller);
    // Stops the call because something it needs is missing.
    void fail() {
        failed_.store(true, std::memory_order_relaxed);
        stopped_.store(true, std::memory_order_relaxed);
    }
    bool failed() const { return failed_.load(std::memory_order_relaxed); }

  private:
    const Control& control_;
    std::atomic<bool> stopped_{false};
    std::atomic<bool> failed_{false};
    int64_t last_poll_ns_ = 0;
};

// A piece of work: `run(context, task, on_caller)` for task in [0, count), on up to `threads`
// threads, the calling one among them. Returns when all are done. The first error that a task
// throws stops the call, and is thrown again here. Calls from several threads share the workers; in
// a forked child the pool starts anew.
void run_tasks(int64_t count, int threads, StopSign& stop, void* context,
               void (*run)(void* context, int64_t task, bool on_caller));

}  // namespace diffgen::cpu
