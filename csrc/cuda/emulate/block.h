// One block of a kernel on a processor: its threads are fibers, run one at a time in an order that
// a seed shuffles, and its shared memory has a shadow that finds what no comparison of results
// does: accesses without a barrier between, reads of what nobody wrote, copies that nobody waited
// for.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

namespace diffgen::cuda::emulate {

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;
// Bytes of shared memory that the shadow tells apart: the kernels access no less at once.
constexpr int kWord = 4;

// Bytes on their way into shared memory.
struct Copy {
    int to;
    const void* from;  // null for zeros
    int group;
};

struct Thread {
    int index = 0;
    int lane = 0;
    int warp = 0;
    void* stack = nullptr;  // where it goes on
    bool done = false;
    int site = 0;  // the line it waits at
    int groups = 0;
    std::vector<Copy> copies;
};

class Block {
  public:
    // Runs `body` on each thread. Null, or what went wrong.
    const char* run(int64_t index, int threads, int shared_bytes, uint64_t seed,
                    const std::function<void()>& body);

    int64_t index() const { return index_; }
    int threads() const { return count_; }
    int shared_bytes() const { return shared_bytes_; }
    Thread& current() { return *current_; }

    void barrier(int site);
    void warp_barrier(int site);
    // The lanes of a warp meet; the last one calls apply(arguments of all 32).
    template <typename Apply>
    void collective(int site, void* argument, Apply apply) {
        if (arrive(site, argument)) {
            apply(slots_[current_->warp]);
            release_warp();
        }
    }

    void read(int at, int bytes, void* out);
    void write(int at, int bytes, const void* in);
    void copy(int to, const void* from);
    void commit() { ++current_->groups; }
    void wait(int newest);
    [[noreturn]] void fail(const char* format, ...);

    void enter();  // the first call on a fiber's own stack

  private:
    struct Access {
        uint64_t epoch = 0;
        uint64_t warp_epoch = 0;
        int thread = -1;
    };
    // What is known of a word.
    struct Shadow {
        Access written;
        Access seen[2];      // by two threads, of two warps where there are such
        uint64_t owner = 0;  // the block that wrote it
        bool pending = false;
    };

    bool arrive(int site, void* argument);
    void release_warp();
    void suspend();
    bool clashes(const Access& access) const;
    void note_write(int at, int bytes, bool pending);
    void check_range(int at, int bytes);

    int64_t index_ = 0;
    int count_ = 0;
    int shared_bytes_ = 0;
    uint64_t block_ = 0;  // blocks run so far
    uint64_t epoch_ = 0;
    uint64_t warp_epoch_[kMostThreads / kWarp] = {};
    int arrived_[kMostThreads / kWarp] = {};
    void* slots_[kMostThreads / kWarp][kWarp] = {};
    int at_barrier_ = 0;
    int done_ = 0;
    uint64_t random_ = 1;
    char fault_[256] = {};
    Thread* current_ = nullptr;
    void* scheduler_ = nullptr;
    std::vector<Thread> threads_;
    std::vector<int> ready_;
    std::vector<unsigned char> memory_;
    std::vector<Shadow> shadow_;
    const std::function<void()>* body_ = nullptr;
};

Block& block();

// Runs every block of a grid, in an order that the seed shuffles.
const char* run_grid(int64_t blocks, int threads, int shared_bytes,
                     const std::function<void()>& body);
void set_seed(uint64_t seed);

}  // namespace diffgen::cuda::emulate
