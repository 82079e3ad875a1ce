#include "block.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <numeric>

#if defined(__x86_64__)
// Saves what a call must keep, and goes on where another stack was left.
asm(R"(
.text
.p2align 4
diffgen_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
extern "C" void diffgen_switch_stack(void** from, void* to);
#else
#error "the emulation of GPU kernels needs x86-64"
#endif

namespace diffgen::cuda::emulate {

namespace {

constexpr size_t kStackBytes = 256 * 1024;
uint64_t the_seed = 1;

// xorshift64
uint64_t next(uint64_t& state) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

void start_fiber() {
    block().enter();
}

// Stacks for as many fibers as a block may have; pages are only taken when they are touched.
unsigned char* stacks() {
    static unsigned char* const memory = static_cast<unsigned char*>(
        mmap(nullptr, kStackBytes * kMostThreads, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    return memory;
}

}  // namespace

Block& block() {
    static Block one;
    return one;
}

void set_seed(uint64_t seed) {
    the_seed = seed * 2 + 1;
}

const char* run_grid(int64_t blocks, int threads, int shared_bytes,
                     const std::function<void()>& body) {
    std::vector<int64_t> order(static_cast<size_t>(blocks));
    std::iota(order.begin(), order.end(), int64_t{0});
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[next(the_seed) % i]);
    for (const int64_t index : order) {
        const char* const fault = block().run(index, threads, shared_bytes, next(the_seed), body);
        if (fault) return fault;
    }
    return nullptr;
}

const char* Block::run(int64_t index, int threads, int shared_bytes, uint64_t seed,
                       const std::function<void()>& body) {
    index_ = index;
    count_ = threads;
    shared_bytes_ = shared_bytes;
    random_ = seed | 1;
    body_ = &body;
    fault_[0] = 0;
    at_barrier_ = done_ = 0;
    ++block_;
    ++epoch_;
    if (static_cast<int>(memory_.size()) < shared_bytes) {
        memory_.resize(shared_bytes);
        shadow_.resize((shared_bytes + kWord - 1) / kWord);
    }
    std::fill(memory_.begin(), memory_.end(), uint8_t{0xcd});
    threads_.resize(threads);
    ready_.clear();
    for (int t = 0; t < threads; ++t) {
        Thread& thread = threads_[t];
        thread = Thread();
        thread.index = t;
        thread.lane = t % kWarp;
        thread.warp = t / kWarp;
        arrived_[thread.warp] = 0;
        // A stack that looks as if it had been left just before the first instruction.
        void** top = reinterpret_cast<void**>(stacks() + kStackBytes * (t + 1)) - 2;
        *top = reinterpret_cast<void*>(&start_fiber);
        thread.stack = top - 6;
        ready_.push_back(t);
    }
    while (done_ < count_) {
        if (ready_.empty()) {
            if (at_barrier_ != count_) {
                std::snprintf(fault_, sizeof(fault_),
                              "%d of %d threads wait at a barrier, %d have ended: the others never "
                              "come (line %d)",
                              at_barrier_, count_, done_, current_->site);
                return fault_;
            }
            for (Thread& thread : threads_) {
                if (thread.site != threads_[0].site) {
                    std::snprintf(fault_, sizeof(fault_), "threads wait at barriers %d and %d",
                                  thread.site, threads_[0].site);
                    return fault_;
                }
                ready_.push_back(thread.index);
            }
            at_barrier_ = 0;
            ++epoch_;
        }
        const size_t pick = next(random_) % ready_.size();
        current_ = &threads_[ready_[pick]];
        ready_[pick] = ready_.back();
        ready_.pop_back();
        diffgen_switch_stack(&scheduler_, current_->stack);
        if (fault_[0]) return fault_;
    }
    return nullptr;
}

void Block::enter() {
    (*body_)();
    if (!current_->copies.empty()) fail("a thread ends before its copies have landed");
    current_->done = true;
    ++done_;
    suspend();
}

void Block::suspend() {
    Thread& self = *current_;
    diffgen_switch_stack(&self.stack, scheduler_);
}

void Block::fail(const char* format, ...) {
    const int used =
        std::snprintf(fault_, sizeof(fault_),
                      "block %lld, thread %d: ", static_cast<long long>(index_), current_->index);
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(fault_ + used, sizeof(fault_) - used, format, arguments);
    va_end(arguments);
    // The scheduler gives the block up: no fiber of it goes on.
    for (;;) suspend();
}

void Block::barrier(int site) {
    current_->site = site;
    ++at_barrier_;
    suspend();
}

void Block::warp_barrier(int site) {
    collective(site, nullptr, [this](void**) { ++warp_epoch_[current_->warp]; });
}

bool Block::arrive(int site, void* argument) {
    Thread& self = *current_;
    self.site = site;
    slots_[self.warp][self.lane] = argument;
    if (++arrived_[self.warp] < kWarp) {
        suspend();
        return false;
    }
    for (int lane = 0; lane < kWarp; ++lane) {
        const int other = threads_[self.warp * kWarp + lane].site;
        if (other != site) fail("lanes of a warp meet at lines %d and %d", other, site);
    }
    return true;
}

void Block::release_warp() {
    arrived_[current_->warp] = 0;
    for (int lane = 0; lane < kWarp; ++lane) {
        if (lane != current_->lane) ready_.push_back(current_->warp * kWarp + lane);
    }
}

// Whether nothing orders an access of another thread and one of the current thread.
bool Block::clashes(const Access& access) const {
    if (access.thread < 0 || access.thread == current_->index || access.epoch != epoch_) {
        return false;
    }
    return access.thread / kWarp != current_->warp ||
           access.warp_epoch == warp_epoch_[current_->warp];
}

void Block::check_range(int at, int bytes) {
    if (at < 0 || at + bytes > shared_bytes_) {
        fail("shared bytes [%d, %d) of %d", at, at + bytes, shared_bytes_);
    }
    if (bytes % kWord || at % bytes) fail("%d shared bytes at %d are not aligned", bytes, at);
}

void Block::read(int at, int bytes, void* out) {
    check_range(at, bytes);
    const Access now{epoch_, warp_epoch_[current_->warp], current_->index};
    for (int i = at; i < at + bytes; i += kWord) {
        Shadow& word = shadow_[i / kWord];
        if (word.owner != block_) fail("reads shared byte %d, which nobody wrote", i);
        if (word.pending) fail("reads shared byte %d before its copy has landed", i);
        if (clashes(word.written)) {
            fail("reads shared byte %d, written by thread %d with no barrier between", i,
                 word.written.thread);
        }
        // The two kept are of different threads, and of different warps where that is so.
        Access& first = word.seen[0];
        Access& second = word.seen[1];
        if (first.epoch != epoch_) {
            first = now;
        } else if (first.thread / kWarp == current_->warp &&
                   (first.thread == now.thread || first.warp_epoch != now.warp_epoch)) {
            first = now;
        } else if (second.epoch != epoch_ || second.thread / kWarp == first.thread / kWarp) {
            second = now;
        }
    }
    std::memcpy(out, memory_.data() + at, bytes);
}

void Block::note_write(int at, int bytes, bool pending) {
    const Access now{epoch_, warp_epoch_[current_->warp], current_->index};
    for (int i = at; i < at + bytes; i += kWord) {
        Shadow& word = shadow_[i / kWord];
        const bool fresh = word.owner != block_;
        if (!fresh) {
            if (word.pending) fail("writes shared byte %d before its copy has landed", i);
            if (clashes(word.written)) {
                fail("writes shared byte %d, as thread %d does, with no barrier between", i,
                     word.written.thread);
            }
            for (const Access& seen : word.seen) {
                if (clashes(seen)) {
                    fail("writes shared byte %d, read by thread %d with no barrier between", i,
                         seen.thread);
                }
            }
        }
        word.written = now;
        word.owner = block_;
        word.pending = pending;
    }
}

void Block::write(int at, int bytes, const void* in) {
    check_range(at, bytes);
    note_write(at, bytes, false);
    std::memcpy(memory_.data() + at, in, bytes);
}

void Block::copy(int to, const void* from) {
    check_range(to, 16);
    if (reinterpret_cast<uintptr_t>(from) % 16) fail("copies from an address that is not aligned");
    note_write(to, 16, true);
    std::memset(memory_.data() + to, 0xab, 16);
    current_->copies.push_back({to, from, current_->groups});
}

void Block::wait(int newest) {
    std::vector<Copy> left;
    for (const Copy& copy : current_->copies) {
        if (copy.group >= current_->groups - newest) {
            left.push_back(copy);
            continue;
        }
        for (int i = 0; i < 16; i += kWord) shadow_[(copy.to + i) / kWord].pending = false;
        note_write(copy.to, 16, false);
        if (copy.from) {
            std::memcpy(memory_.data() + copy.to, copy.from, 16);
        } else {
            std::memset(memory_.data() + copy.to, 0, 16);
        }
    }
    current_->copies.swap(left);
}

}  // namespace diffgen::cuda::emulate
