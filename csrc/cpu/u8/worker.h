// One thread's work on a block of queries: a segment of rows at a time.
//
// Screen, then decide: products with a query's leading digits bound every distance, and rows whose
// weight is provably zero are dropped; the others get the product with as many digits as the
// promise needs. How many digits screen is a matter of speed: the result does not depend on it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "../buffer.h"
#include "../pool.h"
#include "posterior.h"
#include "queries.h"
#include "screen_plan.h"
#include "segments.h"
#include "weighted_sums.h"

namespace diffgen::cpu::u8 {

// What a call asks for, and how.
struct Task {
    const Kernels& kernels;
    int64_t features;
    int64_t top_k = 0;
    bool functionals = false;
    int forced_planes = 0;  // digits that screen, 0 to choose them
};

class Worker {
  public:
    Worker(const Task& task, int64_t queries);

    // The posterior of each query over a segment; `parts` have room for their means. `known` are
    // references that the segments before are sure to reach. Stops early when it is told to, with
    // parts that mean nothing.
    void run(const QueryBlock& queries, const Segments& segments, int64_t segment,
             const std::atomic<double>* known, Posterior* parts, StopSign& stop, bool on_caller);

    // A new block of queries may stand where another was.
    void forget();

  private:
    static constexpr int64_t kMostPending = kSegmentRows / kDenseShare;

    // Rows that are weighted together: those of a dense tile, or those that sparse tiles left.
    struct Unit {
        int64_t count = 0;
        double best = -INFINITY;
        double nearest_square = INFINITY;  // at sigma = 0
        double* logits = nullptr;
        double* norms = nullptr;
        const uint8_t** rows = nullptr;
        int64_t* places = nullptr;  // in the segment
    };

    void form_products();
    void take(int64_t i, Posterior& part);

    // worker_rows.cpp
    void take_nearest(const Query& query, int64_t i, Posterior& part);
    void decide_all(const Query& query, int64_t i);
    void screen(const Query& query, int64_t i, const Posterior& part);
    void find_bounds(const Query& query);
    void offer_nearest(const Query& query, Posterior& part);

    // worker_weights.cpp
    void accept(const Query& query, int64_t i, double nearest_square, Posterior& part);
    void settle(const Query& query, int64_t i, Posterior& part);
    const uint8_t* keep(const uint8_t* row, int64_t place);
    WeightedSum weigh(const Query& query, const Unit& unit, const int64_t* positions, int8_t* room,
                      Posterior& part);
    Sums sums_of(const Unit& unit) const;

    const Task& task_;
    const Kernels& kernels_;
    int64_t features_;
    Tile tile_;
    const QueryBlock* queries_ = nullptr;
    // Kept between segments of a block.
    ScreenPlan plan_;
    const QueryBlock* planned_for_ = nullptr;
    // Products of the tile: a plane for each digit of each point.
    std::vector<int> planes_;  // formed, for each point
    Buffer<int64_t> plane_products_;
    std::vector<const int8_t*> columns_;
    std::vector<int64_t*> outs_;
    int planes_used_ = 0;    // of the query at hand
    int64_t excluded_ = -1;  // position in the tile of the row left out
    // Where rows come from a file: those of the tile, and by place those of the segment that sparse
    // tiles left, of which only the pages in use take memory.
    bool from_file_ = false;
    Buffer<uint8_t> copies_;
    std::unique_ptr<uint8_t[]> waiting_;
    std::vector<bool> waits_;
    // Rows of the tile that matter to the query at hand.
    Unit chosen_;
    Buffer<int64_t> positions_;
    Buffer<double> chosen_logits_;
    Buffer<double> chosen_norms_;
    Buffer<const uint8_t*> chosen_rows_;
    Buffer<int64_t> chosen_places_;
    // Of each query, what the sparse tiles of the segment left so far.
    std::vector<Unit> pending_;
    Buffer<double> pending_logits_;
    Buffer<double> pending_norms_;
    Buffer<const uint8_t*> pending_rows_;
    Buffer<int64_t> pending_places_;
    // Of every row of the tile.
    Buffer<int64_t> products_;
    Buffer<double> logits_;
    Buffer<double> upper_;
    Buffer<double> distances_;
    Buffer<double> near_;
    bool bounds_known_ = false;
    // Of the rows that a screen leaves.
    Buffer<int64_t> candidate_products_;
    Buffer<double> candidate_log_weights_;
    // Weights and their digits.
    Buffer<double> weights_;
    Buffer<double> spread_;
    int64_t digit_stride_;
    Buffer<int8_t> sparse_digits_;
    Buffer<int8_t> dense_digits_;
    std::vector<WeightedSum> sums_;  // of the dense tiles, over the tile at hand
    WeightedSums weighted_sums_;
};

}  // namespace diffgen::cpu::u8
