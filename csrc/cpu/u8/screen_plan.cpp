#include "screen_plan.h"

#include <algorithm>
#include <cmath>

namespace diffgen::cpu::u8 {

namespace {

// Tiles from one plan of the screen to the next.
constexpr int64_t kPlanEvery = 4;
// What a digit's product costs for a row picked out of a tile, in products of a whole tile, and
// what a float64 difference costs.
constexpr double kPickedCost = 3.0;
constexpr double kDifferenceCost = 40.0;

}  // namespace

void ScreenPlan::start(const QueryBlock& queries) {
    tiles_ = 0;
    for (int64_t i = 0; i < queries.count(); ++i) {
        digits_[static_cast<size_t>(i)] = first(queries, queries[i]);
    }
}

int ScreenPlan::first(const QueryBlock& queries, const Query& query) const {
    if (forced_ > 0) return std::min(forced_, query.digits);
    return first_planes(queries.point_of(query), query, queries.typical_length());
}

void ScreenPlan::revise(const QueryBlock& queries, int64_t i, const double* logits, int64_t rows,
                        double best) {
    if (forced_ > 0 || (tiles_ > kPlanEvery && tiles_ % kPlanEvery != 0)) {
        return;
    }
    const Query& query = queries[i];
    const Point& point = queries.point_of(query);
    const double square = std::max(0.0, (query.constant - best) / query.kappa);
    const double slope = 4.0 * query.kappa * std::sqrt(square);
    if (!std::isfinite(slope)) return;
    int chosen = query.digits;
    double least = query.by_differences ? INFINITY : query.digits;
    for (int digits = 1; digits <= query.digits; ++digits) {
        if (digits == query.digits && !query.by_differences) break;
        const double floor = best - query.cut - slope * point.lost[digits - 1];
        int64_t left = 0;
        for (int64_t r = 0; r < rows; ++r) left += logits[r] >= floor;
        const double share = static_cast<double>(left) / static_cast<double>(rows);
        const double each =
            query.by_differences ? kDifferenceCost : kPickedCost * (query.digits - digits);
        const double cost = digits + share * each;
        if (cost < least) {
            least = cost;
            chosen = digits;
        }
    }
    digits_[static_cast<size_t>(i)] = chosen;
}

}  // namespace diffgen::cpu::u8
