// A block of queries made ready for the kernels, each with the bounds on its logits' errors.
//
// Bounds (derived in docs/numerics.md). With y the row, o its origin, x the query less alpha o,
// kappa = 1 / (2 sigma^2) and u32, u64 the unit roundoffs, a logit computed
//   from float32 products is off by at most kappa (low_slope |y - o| + wide part),
//   from float64 products by at most kappa wide_factor (|x| + alpha |y - o|)^2.
#pragma once

#include <cstdint>

#include "../problem.h"
#include "buffer.h"
#include "kernels.h"

namespace diffgen::cpu {

struct Query {
    const float* low = nullptr;    // x rounded to float, (features,)
    const double* wide = nullptr;  // x = query - alpha origin, (features,)
    double kappa = 0.0;            // 1 / (2 sigma^2); 1 for sigma = 0
    double alpha = 1.0;
    double row_scale = 1.0;  // alpha times the size of a stored unit
    double square = 0.0;     // |x|^2
    double low_slope = 0.0;
    double wide_factor = 0.0;
    double tolerance = 0.0;  // logits known to within this are final
    double log_rows = 0.0;   // logarithm of the count of eligible rows
    double margin = 0.0;     // rows further than this below the best, in nats, are dropped
    int64_t exclude = -1;
    bool finite = true;  // and its sigma, alpha and exclude are ones that there can be
    bool sigma_is_zero = false;
    bool is_double = false;
    bool anchored = false;        // distances are decided by their excess over a near row's
    bool careful = false;         // as demanded
    double typical_length = 0.0;  // as demanded

    double length = 0.0;  // |x|

    // Bounds on the error of squared distances |x - alpha (y - o)|^2 from products, for rows of at
    // most this norm.
    double wide_error(double row_norm) const {
        const double reach = length + alpha * row_norm;
        return wide_factor * reach * reach;
    }
    double low_error(double row_norm) const { return low_slope * row_norm + wide_error(row_norm); }
};

// What a call asks of the logits beyond the promise for a float mean.
struct Demands {
    bool careful = false;  // every row's bound is held against the tolerance, not a typical one
    bool score = false;    // the mean is divided by sigma: it must be that much more precise
    double least_margin = 0.0;    // rows are kept that far below the best, in nats, or further
    double typical_length = 0.0;  // root mean square of |row - origin| over the eligible rows
};

class QueryBlock {
  public:
    // Queries [begin, end) of the problem.
    QueryBlock(const Problem& problem, const Kernels& kernels, int64_t begin, int64_t end,
               const Demands& demands);

    int64_t count() const { return count_; }
    const Query& operator[](int64_t i) const { return queries_[i]; }

  private:
    int64_t count_;
    Buffer<float> low_;
    Buffer<double> wide_;
    Buffer<Query> queries_;
};

}  // namespace diffgen::cpu
