// Moments over 8-bit rows that come block by block: what moments.h computes over all rows at hand,
// with the same bits, over rows of which only some are.
//
// A pass holds the posterior of every query over the rows that came so far. Passes over
// consecutive rows, in several processes, are merged from left to right: see `merge_after`.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "../../problem.h"
#include "../lengths.h"
#include "kernels.h"
#include "segments.h"
#include "wave.h"

namespace diffgen::cpu::u8 {

// What the bits of a result depend on beside the rows at hand.
struct Extent {
    int64_t count;     // rows of the set
    int64_t eligible;  // of them
    Lengths lengths;   // of the eligible ones
};

struct PassOptions {
    int64_t top_k = 0;
    bool functionals = false;
    bool mean_is_double = false;
    int threads = 1;
    int64_t segments_at_once = 1;  // of a block of rows, about
    // Keeps the posteriors of single segments apart, so that those of earlier rows can be put
    // before them.
    bool keep_segments = false;
};

// Which queries are decided by differences from a nearest row, `anchors` below: one flag each.
void find_undecided(const Problem& problem, const Extent& extent, const PassOptions& options,
                    const Kernels& kernels, bool* undecided);

enum class Added { all, stopped, unreadable };

class Pass {
  public:
    // Of the problem, queries and affine map are read, and only here. `anchors` are rows
    // (batch, features) for the queries that are decided by differences, or null; they must stay.
    // `squares` takes the least squared distance of each query at sigma = 0 to each segment,
    // (batch, segments of the set), or is null; it must stay too.
    Pass(const Problem& problem, const Extent& extent, const PassOptions& options,
         const Kernels& kernels, const uint8_t* anchors, double* squares);
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;

    // Whole segments, in ascending order, on at most as many threads as the pass has. When it was
    // stopped, or rows could not be read, the pass is over.
    Added add(const RowBlock& rows, const Control& control);

    // Numbers that hold the posterior of a query.
    int64_t state_size() const;
    // (batch, state_size), of the rows so far, but for kept segments.
    void write_state(double* states);
    void read_state(const double* states);
    // The posterior over these earlier rows and then the own ones; kept segments are kept no more.
    void merge_after(const double* states);
    // Bytes of the kept segments.
    int64_t kept_bytes() const;

    // Ends the pass.
    Outcome finish(const MomentsOutput& output);

  private:
    // The posterior of a query over one segment.
    struct Kept {
        Kept(const Posterior& part, int64_t features);

        Buffer<double> mean;
        Posterior part;
    };

    double merge(int64_t block, int64_t i, int64_t segment, Posterior& part);
    double keep(int64_t block, int64_t i, const Posterior& part);
    Posterior& total(int64_t b) { return totals_[b / block_].parts[b % block_]; }
    const Query& query(int64_t b) const { return blocks_[b / block_][b % block_]; }
    void load(const double* state, Posterior& posterior) const;

    Problem problem_;
    const Kernels& kernels_;
    PassOptions options_;
    Task task_;
    double* squares_;
    int64_t set_segments_;
    int64_t block_;  // queries of a block
    std::vector<QueryBlock> blocks_;
    std::vector<Slot> totals_;
    std::vector<Slot> rooms_;
    std::vector<Worker> workers_;
    Known known_;
    std::vector<std::deque<Kept>> kept_;  // of each query
    const Segments* segments_ = nullptr;  // of the block at hand
};

}  // namespace diffgen::cpu::u8
