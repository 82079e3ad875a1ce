#include "norms.h"

#include <algorithm>

#include "pool.h"

namespace diffgen::cpu {

namespace {

// Features whose squares, of 128 at most, are summed in 32 bits.
constexpr int64_t kChunk = 65'536;
// Bytes of one piece of work.
constexpr int64_t kPieceBytes = 256 << 10;

struct Work {
    const uint8_t* data;
    int64_t rows;
    int64_t features;
    int64_t* norms;
    int64_t piece;  // rows
    StopSign& stop;
};

int64_t norm_of(const uint8_t* row, int64_t features) {
    int64_t norm = 0;
    for (int64_t begin = 0; begin < features; begin += kChunk) {
        const int64_t end = std::min(features, begin + kChunk);
        int32_t sum = 0;
        for (int64_t k = begin; k < end; ++k) {
            const int16_t shifted = static_cast<int16_t>(row[k] - 128);
            sum += shifted * shifted;
        }
        norm += sum;
    }
    return norm;
}

void measure(void* context, int64_t task, bool on_caller) {
    const Work& work = *static_cast<const Work*>(context);
    if (work.stop.check(on_caller)) return;
    const int64_t last = std::min(work.rows, (task + 1) * work.piece);
    for (int64_t row = task * work.piece; row < last; ++row) {
        work.norms[row] = norm_of(work.data + row * work.features, work.features);
    }
}

}  // namespace

bool byte_norms(const uint8_t* data, int64_t rows, int64_t features, int64_t* norms,
                const Control& control) {
    StopSign stop(control);
    const int64_t piece = std::max<int64_t>(1, kPieceBytes / std::max<int64_t>(features, 1));
    Work work{data, rows, features, norms, piece, stop};
    run_tasks((rows + piece - 1) / piece, control.threads, stop, &work, measure);
    return !stop.stopped();
}

}  // namespace diffgen::cpu
