// A block of queries in fixed point, with the bounds that decide how many digits are used.
//
// With x the query less alpha times the origin, V = rint(unit x) and V_p its first p digits, a
// product V_p . (row - 128) is exact; what it says of the query itself is off by no more than
// `lost[p - 1]` = |x - x_p| allows. Derived in docs/numerics.md.
#pragma once

#include <cstdint>

#include "../../problem.h"
#include "../buffer.h"
#include "../lengths.h"
#include "kernels.h"

namespace diffgen::cpu::u8 {

// What several queries may share: a noisy point and its signal scale.
struct Point {
    const double* x = nullptr;  // query - alpha origin, (features,)
    const int8_t* digits[kQueryDigits] = {};
    double alpha = 1.0;
    double row_scale = 1.0;  // alpha times the size of a stored unit
    double square = 0.0;     // |x|^2
    bool finite = true;
    // Of the first p digits, at p - 1:
    int64_t correction[kQueryDigits] = {};  // product of the digits with 128
    double step[kQueryDigits] = {};         // size of a unit of the product's fixed point
    double lost[kQueryDigits] = {};         // bound on |x - x_p|
    double squares[kQueryDigits] = {};      // |x_p|^2
};

struct Query {
    int64_t point = 0;
    double kappa = 0.0;           // 1 / (2 sigma^2); 1 for sigma = 0
    double norm_factor = 0.0;     // kappa alpha^2
    double product_factor = 0.0;  // of a product of all `digits`
    double constant = 0.0;        // kappa |x|^2, or that of the anchor: left out of the logits
    double margin = 0.0;          // tiles and segments so far below another, in nats, are dropped
    double cut = 0.0;             // rows so far below the best of their tile, in nats, are dropped
    double weight_tolerance = 0.0;
    int64_t exclude = -1;
    int digits = kQueryDigits;        // that decide the logits
    bool by_differences = false;      // the logits are decided by float64 differences instead,
    const uint8_t* anchor = nullptr;  // from this row, a nearest one
    bool sigma_is_zero = false;
    bool finite = true;  // and its sigma, alpha and exclude are ones that there can be
};

// What a call asks beyond a float32 mean.
struct Demands {
    bool functionals = false;
    bool score = false;  // the mean is divided by sigma: it must be that much more precise
};

class QueryBlock {
  public:
    // Queries [begin, end) of the problem.
    QueryBlock(const Problem& problem, const Kernels& kernels, int64_t begin, int64_t end,
               const Demands& demands, const Lengths& lengths);

    int64_t count() const { return count_; }
    int64_t point_count() const { return point_count_; }
    const Query& operator[](int64_t i) const { return queries_[i]; }
    const Point& point(int64_t p) const { return points_[p]; }
    const Point& point_of(const Query& query) const { return points_[query.point]; }
    double reach(const Point& point) const;
    // Refers the logits of query i, decided by differences, to a nearest row.
    void set_anchor(const Kernels& kernels, int64_t i, const uint8_t* row);
    const Lengths& lengths() const { return lengths_; }

  private:
    void add_point(const Problem& problem, const Kernels& kernels, int64_t b);
    void decide(const Problem& problem, const Demands& demands, int64_t b, Query& query) const;

    int64_t count_;
    int64_t point_count_ = 0;
    int64_t features_;
    Lengths lengths_;
    Buffer<double> x_;
    Buffer<int8_t> digits_;
    Buffer<Point> points_;
    Buffer<Query> queries_;
};

}  // namespace diffgen::cpu::u8
