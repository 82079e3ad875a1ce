#include "pool.h"

#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

namespace diffgen::cpu {

namespace {

constexpr int64_t kPollEveryNs = 20'000'000;

int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

struct Job {
    int64_t count;
    void* context;
    void (*run)(void*, int64_t, bool);
    int helpers_wanted;
    StopSign* stop;
    std::atomic<int64_t> next{0};
    // Guarded by the pool's mutex.
    int helpers_inside = 0;
    std::exception_ptr error;  // the first of a task
};

class Pool {
  public:
    void run(Job& job) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            grow(job.helpers_wanted);
            jobs_.push_back(&job);
        }
        work_.notify_all();
        take(job, true);
        std::unique_lock<std::mutex> lock(mutex_);
        for (auto it = jobs_.begin(); it != jobs_.end(); ++it) {
            if (*it == &job) {
                jobs_.erase(it);
                break;
            }
        }
        while (job.helpers_inside > 0) {
            done_.wait_for(lock, std::chrono::nanoseconds(kPollEveryNs));
            lock.unlock();
            job.stop->check(true);
            lock.lock();
        }
        if (job.error) std::rethrow_exception(job.error);
    }

  private:
    void take(Job& job, bool on_caller) {
        for (;;) {
            const int64_t task = job.next.fetch_add(1);
            if (task >= job.count) return;
            try {
                job.run(job.context, task, on_caller);
            } catch (...) {
                const std::lock_guard<std::mutex> lock(mutex_);
                if (!job.error) job.error = std::current_exception();
                job.next.store(job.count);
                job.stop->fail();
            }
        }
    }

    // A job with room for one more helper, or null.
    Job* open_job() {
        for (Job* job : jobs_) {
            if (job->helpers_wanted > 0 && job->next.load() < job->count) return job;
        }
        return nullptr;
    }

    void work() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            Job* job = open_job();
            if (job == nullptr) {
                work_.wait(lock);
                continue;
            }
            --job->helpers_wanted;
            ++job->helpers_inside;
            lock.unlock();
            take(*job, false);
            lock.lock();
            if (--job->helpers_inside == 0) done_.notify_all();
        }
    }

    void grow(int workers) {
        while (workers_ < workers) {
            try {
                std::thread([this] { work(); }).detach();
            } catch (const std::system_error&) {
                return;  // no more threads to be had: the work is done by those there are
            }
            ++workers_;
        }
    }

    std::mutex mutex_;
    std::condition_variable work_;
    std::condition_variable done_;
    std::deque<Job*> jobs_;
    int workers_ = 0;
};

// Never destroyed: its threads may outlive the statics of the process.
std::atomic<Pool*> current{nullptr};

void start_anew_in_child() {
    // The workers did not survive the fork, and the old pool's mutex may be held for ever.
    current.store(nullptr);
}

Pool& pool() {
    static const int registered = pthread_atfork(nullptr, nullptr, start_anew_in_child);
    static_cast<void>(registered);
    Pool* found = current.load();
    if (found == nullptr) {
        Pool* const fresh = new Pool();
        if (current.compare_exchange_strong(found, fresh)) return *fresh;
        delete fresh;
    }
    return *found;
}

}  // namespace

bool StopSign::check(bool on_caller) {
    if (stopped()) return true;
    if (!on_caller || control_.poll == nullptr) return false;
    const int64_t now = now_ns();
    if (last_poll_ns_ == 0) last_poll_ns_ = now;
    if (now - last_poll_ns_ < kPollEveryNs) return false;
    last_poll_ns_ = now;
    if (control_.poll(control_.poll_context)) stopped_.store(true);
    return stopped();
}

void run_tasks(int64_t count, int threads, StopSign& stop, void* context,
               void (*run)(void*, int64_t, bool)) {
    if (threads <= 1 || count <= 1) {
        for (int64_t task = 0; task < count; ++task) run(context, task, true);
        return;
    }
    Job job{};
    job.count = count;
    job.context = context;
    job.run = run;
    job.helpers_wanted = static_cast<int>(count < threads ? count : threads) - 1;
    job.stop = &stop;
    pool().run(job);
}

}  // namespace diffgen::cpu
