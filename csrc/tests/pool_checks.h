// What the pool does when a task fails.
#pragma once

#include <new>

#include "../cpu/pool.h"

namespace diffgen {

// An error in a task is thrown in the thread that called, when no task runs any more.
inline bool error_reaches_the_caller(int threads) {
    struct Tasks {
        std::atomic<int> running{0};
        int64_t failing;
    };
    const Control control{threads, nullptr, nullptr};
    for (int64_t failing = -1; failing < 8; ++failing) {
        cpu::StopSign stop(control);
        Tasks tasks;
        tasks.failing = failing;
        bool thrown = false;
        try {
            cpu::run_tasks(8, threads, stop, &tasks, [](void* context, int64_t task, bool) {
                Tasks& own = *static_cast<Tasks*>(context);
                ++own.running;
                if (task == own.failing) {
                    --own.running;
                    throw std::bad_alloc();
                }
                --own.running;
            });
        } catch (const std::bad_alloc&) {
            thrown = true;
        }
        if (thrown != (failing >= 0) || tasks.running != 0) return false;
    }
    return true;
}

}  // namespace diffgen
