// A block of queries in fixed point, with the bounds that decide how many digits are used.
#pragma once

#include <cstdint>

#include "../../problem.h"
#include "../../u8/query_rules.h"
#include "../buffer.h"
#include "kernels.h"

namespace diffgen::cpu::u8 {

class QueryBlock {
  public:
    // Queries [begin, end) of the problem, for these rows, whose typical length is given.
    QueryBlock(const Problem& problem, const Kernels& kernels, int64_t begin, int64_t end,
               const Demands& demands, const Rows& rows, double typical_length);

    int64_t count() const { return count_; }
    int64_t point_count() const { return point_count_; }
    const Query& operator[](int64_t i) const { return queries_[i]; }
    const Point& point(int64_t p) const { return points_[p]; }
    const Point& point_of(const Query& query) const { return points_[query.point]; }
    // Refers the logits of query i, decided by differences, to a nearest row.
    void set_anchor(const Kernels& kernels, int64_t i, const uint8_t* row);
    const Rows& rows() const { return rows_; }
    double typical_length() const { return typical_length_; }

  private:
    void add_point(const Problem& problem, const Kernels& kernels, int64_t b);

    int64_t count_;
    int64_t point_count_ = 0;
    Rows rows_;
    double typical_length_;
    Buffer<double> x_;
    Buffer<int8_t> digits_;
    Buffer<Point> points_;
    Buffer<Query> queries_;
};

}  // namespace diffgen::cpu::u8
