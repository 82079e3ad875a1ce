#include "ceilings.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "buffer.h"
#include "pool.h"

namespace diffgen::cpu {

namespace {

constexpr int kRepeats = 5;
constexpr int64_t kWords = int64_t{32} << 20;  // 256 MiB
constexpr int64_t kIterations = 4'000'000;

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

struct Measurement {
    const Kernels& kernels;
    const uint64_t* words;
    int64_t share;
    std::vector<double> results;

    static void read(void* context, int64_t task, bool) {
        auto& self = *static_cast<Measurement*>(context);
        const uint64_t* const begin = self.words + task * self.share;
        self.results[task] = static_cast<double>(self.kernels.read_words(begin, self.share));
    }
    static void spin(void* context, int64_t task, bool) {
        auto& self = *static_cast<Measurement*>(context);
        self.results[task] = self.kernels.spin_fma(kIterations);
    }
    static void spin_bytes(void* context, int64_t task, bool) {
        auto& self = *static_cast<Measurement*>(context);
        self.results[task] = 2.0 * static_cast<double>(self.kernels.bytes.spin(kIterations));
    }
};

// The best of several runs: what else the machine does can only slow it down.
double best_seconds(Measurement& measurement, int threads, void (*run)(void*, int64_t, bool)) {
    const Control control{threads, nullptr, nullptr};
    double best = 1e30;
    for (int i = 0; i < kRepeats; ++i) {
        StopSign stop(control);
        const double start = seconds();
        run_tasks(threads, threads, stop, &measurement, run);
        best = std::min(best, seconds() - start);
    }
    return best;
}

}  // namespace

double measure_read_bandwidth(const Kernels& kernels, int threads) {
    const Buffer<uint64_t> words(kWords);
    Measurement measurement{kernels, words.data(), kWords / threads, std::vector<double>(threads)};
    const double elapsed = best_seconds(measurement, threads, Measurement::read);
    return static_cast<double>(measurement.share * threads) * sizeof(uint64_t) / elapsed;
}

namespace {

double measure_peak(const Kernels& kernels, int threads, void (*spin)(void*, int64_t, bool)) {
    Measurement measurement{kernels, nullptr, 0, std::vector<double>(threads)};
    const double elapsed = best_seconds(measurement, threads, spin);
    double operations = 0.0;
    for (const double done : measurement.results) operations += done;
    return operations / elapsed;
}

}  // namespace

double measure_float_peak(const Kernels& kernels, int threads) {
    return measure_peak(kernels, threads, Measurement::spin);
}

double measure_integer_peak(const Kernels& kernels, int threads) {
    return measure_peak(kernels, threads, Measurement::spin_bytes);
}

}  // namespace diffgen::cpu
