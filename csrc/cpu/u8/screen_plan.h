// How many leading digits of each query screen the next tile. A matter of speed alone.
#pragma once

#include <cstdint>
#include <vector>

#include "queries.h"

namespace diffgen::cpu::u8 {

class ScreenPlan {
  public:
    // `forced` digits for every query, 0 to choose them.
    ScreenPlan(int64_t queries, int forced) : forced_(forced), digits_(queries) {}

    // Guesses for a block that is new to the thread.
    void start(const QueryBlock& queries);
    int operator[](int64_t i) const { return digits_[static_cast<size_t>(i)]; }
    void count_tile() { ++tiles_; }
    // What costs least if the next tiles are like this one: `logits` are those of its rows.
    void revise(const QueryBlock& queries, int64_t i, const double* logits, int64_t rows,
                double best);

  private:
    int first(const QueryBlock& queries, const Query& query) const;

    int forced_;
    int64_t tiles_ = 0;
    std::vector<int> digits_;
};

}  // namespace diffgen::cpu::u8
