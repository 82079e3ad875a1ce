// How a call's working memory is cut.
#pragma once

#include <algorithm>
#include <cstdint>

#include "call.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace diffgen::cuda {

// Working memory that a call asks for where one segment needs less.
constexpr int64_t kBudget = int64_t{256} << 20;
constexpr int64_t kAlignment = 256;

// Hands out pieces of memory one after the other, or only counts them where there is none.
class Scratch {
  public:
    explicit Scratch(void* memory) : memory_(static_cast<char*>(memory)) {}

    template <typename T>
    void take(T*& piece, int64_t count) {
        if (memory_) piece = reinterpret_cast<T*>(memory_ + used_);
        const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
        // A gap follows each piece: an emulated step past it is seen.
        const int64_t next = used_ + (bytes / kAlignment + 1) * kAlignment;
#if defined(__SANITIZE_ADDRESS__)
        if (memory_) {
            ASAN_UNPOISON_MEMORY_REGION(memory_ + used_, bytes);
            ASAN_POISON_MEMORY_REGION(memory_ + used_ + bytes, next - used_ - bytes);
        }
#endif
        used_ = next;
    }

    int64_t used() const { return used_; }

  private:
    char* memory_;
    int64_t used_ = 0;
};

inline int64_t eligible_of(const Problem& problem) {
    return problem.rows ? problem.row_count : problem.count;
}

inline int64_t segments_of(const Problem& problem) {
    return eligible_of(problem) == 0 ? 0 : (problem.count + kSegmentRows - 1) / kSegmentRows;
}

// Digits of a query's place are read in steps of 64 and of 16 bytes.
inline int64_t digit_stride(int64_t features) {
    return padded(features);
}

inline int64_t most_tiles(int64_t features) {
    return kSegmentRows / tile_rows(features);
}

// Cuts the memory for so many segments at once; returns what is used.
inline int64_t cut(void* memory, int64_t wave, Call& call) {
    const int64_t batch = call.problem.batch;
    const int64_t features = call.problem.features;
    const int64_t pairs = batch * wave;
    Scratch scratch(memory);
    scratch.take(call.begins, segments_of(call.problem) + 1);
    scratch.take(call.lengths, kLengthBlocks);
    scratch.take(call.queries, batch);
    scratch.take(call.x, batch * features);
    scratch.take(call.digits, kQueryDigits * batch * digit_stride(features));
    scratch.take(call.columns, kPasses * kQueryDigits * batch);
    scratch.take(call.column_count, kPasses);
    scratch.take(call.totals, batch);
    scratch.take(call.total_means, batch * features);
    scratch.take(call.resumes, batch);
    scratch.take(call.products, kQueryDigits * pairs * kSegmentRows);
    scratch.take(call.left, pairs * kWords);
    scratch.take(call.left_count, pairs);
    scratch.take(call.rest_columns, kQueryDigits * pairs);
    scratch.take(call.rest_count, wave);
    scratch.take(call.completed, pairs);
    scratch.take(call.weights, kWeightDigits * pairs * kSegmentRows);
    scratch.take(call.lists, pairs * kSegmentRows);
    scratch.take(call.units, pairs * most_tiles(features));
    scratch.take(call.parts, pairs);
    scratch.take(call.joints, pairs);
    scratch.take(call.weighed, pairs);
    scratch.take(call.courses, groups_of(batch) * wave);
    scratch.take(call.means, pairs * features);
    scratch.take(call.near, pairs);
    return scratch.used();
}

// So many queries and segments at once.
struct Share {
    int64_t batch = 0;
    int64_t wave = 0;
};

inline int64_t bytes_for(const Problem& problem, const Share& share) {
    Call call{};
    call.problem = problem;
    call.problem.batch = share.batch;
    return cut(nullptr, share.wave, call);
}

// The largest number up to `most` that fits; 0 where 1 does not.
template <typename Fits>
int64_t largest_that(int64_t most, Fits fits) {
    int64_t known = 0;
    int64_t beyond = most + 1;
    while (beyond - known > 1) {
        const int64_t middle = known + (beyond - known) / 2;
        (fits(middle) ? known : beyond) = middle;
    }
    return known;
}

// Segments that a wave should have, so that queries do not pass over the rows a few at a time.
constexpr int64_t kFewestSegments = 8;

// The queries and segments that fit: few segments rather than few queries, but for a few segments.
// None of either where one query and one segment do not fit.
inline Share share_within(const Problem& problem, int64_t bytes) {
    const int64_t segments = segments_of(problem);
    Share share;
    for (int64_t wave = std::min(segments, kFewestSegments); share.batch == 0; wave /= 2) {
        share.batch = largest_that(problem.batch, [&](int64_t batch) {
            return bytes_for(problem, {batch, wave}) <= bytes;
        });
        if (wave <= 1) break;
    }
    // A group that is not full costs as much as one that is.
    if (share.batch < problem.batch && share.batch > kGroup) share.batch -= share.batch % kGroup;
    share.wave = largest_that(
        segments, [&](int64_t wave) { return bytes_for(problem, {share.batch, wave}) <= bytes; });
    return share;
}

}  // namespace diffgen::cuda
