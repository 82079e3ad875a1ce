// A nearest row for each query whose logits are decided by differences: bounds leave few rows, and
// float64 differences tell which is nearest, with the lowest id among equals.
#pragma once

#include "prepare.cuh"
#include "products.cuh"

namespace diffgen::cuda {

namespace {

constexpr int kNearThreads = 256;
constexpr int kNearWarps = kNearThreads / 32;
constexpr int kNearEach = kSegmentRows / kNearThreads;

DIFFGEN_DEVICE bool comes_before(const NearRow& a, const NearRow& b) {
    if (b.id < 0) return a.id >= 0;
    if (a.id < 0) return false;
    return a.distance != b.distance ? a.distance < b.distance : a.id < b.id;
}

// A block finds a query's nearest row of a segment.
DIFFGEN_KERNEL(kNearThreads, 2) find_nearest(Call call) {
    const Pair pair = pair_of(call, block_index());
    const QueryState& state = call.queries[pair.b];
    if (!wants_nearest(state.query)) return;
    SharedMemory memory;
    const Shared<double> room = memory.take<double>(kNearWarps);
    const Shared<int64_t> ids = memory.take<int64_t>(kNearWarps);
    const Shared<uint32_t> masks = memory.take<uint32_t>(kSegmentRows / 32);
    double near[kNearEach];
    double least = -INFINITY;  // less the smallest upper bound
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kNearEach; ++i) {
        near[i] = INFINITY;
        const int64_t r = i * kNearThreads + thread_index();
        if (r >= pair.count) continue;
        const int64_t id = row_id(call, pair.begin + r);
        if (id == state.query.exclude || log_weight_of(call, id) == -INFINITY) continue;
        const Bound bound =
            bound_of(state.terms, product_of(call, pair, state.planes, r), call.problem.norms[id]);
        near[i] = bound.near;
        least = larger(least, -far_square(state.terms, bound.distance));
    }
    least = largest_of(least, 32);
    if (lane_index() == 0) room[warp_index()] = least;
    sync_threads();
    for (int w = 0; w < kNearWarps; ++w) least = larger(least, room[w]);
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kNearEach; ++i) {
        const uint32_t mask = ballot(near[i] != INFINITY && !(near[i] > -least * kNearSlack));
        if (lane_index() == 0) masks[i * kNearWarps + warp_index()] = mask;
    }
    sync_threads();
    NearRow best{INFINITY, -1};
    int turn = 0;
    for (int word = 0; word < kSegmentRows / 32; ++word) {
        for (uint32_t mask = masks[word]; mask != 0; mask &= mask - 1) {
            if (turn++ % kNearWarps != warp_index()) continue;
            const int64_t r = word * 32 + count_bits((mask & (0u - mask)) - 1);
            const int64_t id = row_id(call, pair.begin + r);
            const NearRow here{
                distance_to(row_of(call, id), call.x + pair.b * call.problem.features,
                            state.point.row_scale, call.problem.features),
                id};
            if (comes_before(here, best)) best = here;
        }
    }
    if (lane_index() == 0) {
        room[warp_index()] = best.distance;
        ids[warp_index()] = best.id;
    }
    sync_threads();
    if (thread_index() != 0) return;
    for (int w = 1; w < kNearWarps; ++w) {
        const NearRow other{room[w], ids[w]};
        if (comes_before(other, best)) best = other;
    }
    call.near[pair.at(call)] = best;
}

// A thread keeps a query's nearest row of the segments so far.
DIFFGEN_KERNEL(kPrepareThreads, 4) keep_nearest(Call call) {
    const int64_t b = block_index() * kPrepareThreads + thread_index();
    if (b >= call.problem.batch || !wants_nearest(call.queries[b].query)) return;
    QueryState& state = call.queries[b];
    NearRow best{state.anchor_distance, state.anchor};
    for (int64_t local = 0; local < call.here; ++local) {
        const NearRow other = call.near[b * call.wave + local];
        if (comes_before(other, best)) best = other;
    }
    state.anchor = best.id;
    state.anchor_distance = best.distance;
    state.query.constant = state.query.kappa * best.distance;
}

}  // namespace

}  // namespace diffgen::cuda
