#include "results.h"

#include <algorithm>
#include <cmath>

#include "../outputs.h"

namespace diffgen::cpu::u8 {

namespace {

void write(const Problem& problem, const MomentsOutput& output, int64_t b, const Query& query,
           Posterior& total) {
    const double factor = problem.scale / total.sums.quantised;
    const double origin = problem.origin();
    double about_origin = 0.0;
    for (int64_t begin = 0; begin < problem.features; begin += kChain) {
        double lanes[kLanes] = {};
        const int64_t end = std::min(problem.features, begin + kChain);
        for (int64_t k = begin; k < end; ++k) {
            const double offset = factor * total.mean[k];
            lanes[k % kLanes] += offset * offset;
            store_mean(output, b * problem.features + k, origin + offset);
        }
        about_origin += sum_lanes(lanes);
    }
    const Sums& sums = total.sums;
    const bool apart = query.sigma_is_zero && total.nearest_square > 0.0;
    output.logsumexp[b] =
        apart ? -INFINITY : (total.reference - query.constant) + fixed_log(sums.mass);
    if (output.functionals) {
        double* const functionals = output.functionals + 3 * b;
        functionals[0] = std::max(0.0, fixed_log(sums.weights) - sums.logits / sums.weights);
        functionals[1] = sums.weights * sums.weights / sums.squares;
        functionals[2] = std::max(0.0, sums.norms / sums.weights - about_origin);
    }
    write_nearest(output, b, total.nearest);
}

}  // namespace

void write_result(const Problem& problem, const MomentsOutput& output, int64_t b,
                  const Query& query, Posterior& total, Outcome& outcome) {
    if (!query.finite) {
        write_nothing(problem, output, b);
    } else if (total.empty()) {
        write_nothing(problem, output, b);
        if (outcome.status == Status::ok) outcome = {Status::nothing_eligible, b, 0};
    } else {
        write(problem, output, b, query, total);
        const int64_t eligible = total.nearest.count();
        if (eligible < output.top_k && outcome.status == Status::ok) {
            outcome = {Status::too_few_eligible, b, eligible};
        }
    }
}

}  // namespace diffgen::cpu::u8
