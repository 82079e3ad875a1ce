// Segments into the result, from left to right, and the result into the outputs.
#pragma once

#include "prepare.cuh"
#include "sums_sparse.cuh"

namespace diffgen::cuda {

namespace {

// A thread merges a query's posteriors over the segments of the wave, but for their means.
DIFFGEN_KERNEL(kPrepareThreads, 4) chain_parts(Call call) {
    const int64_t b = block_index() * kPrepareThreads + thread_index();
    if (b >= call.problem.batch) return;
    const Query& query = call.queries[b].query;
    State total = call.totals[b];
    int32_t resumes = 0;
    for (int64_t local = 0; local < call.here; ++local) {
        const State& part = call.parts[b * call.wave + local].state;
        const Factors factors =
            meet(total, part.reference, part.nearest_square, query.margin, query.sigma_is_zero);
        join(total, part.sums, part.reference, part.nearest_square, factors);
        call.joints[b * call.wave + local] = {factors.old, factors.fresh};
        if (factors.old == 0.0) resumes = static_cast<int32_t>(local);
    }
    call.totals[b] = total;
    call.resumes[b] = resumes;
}

DIFFGEN_DEVICE int64_t feature_blocks(const Call& call) {
    return (call.problem.features + kPrepareThreads - 1) / kPrepareThreads;
}

// A thread merges a feature of a query's means.
DIFFGEN_KERNEL(kPrepareThreads, 4) merge_means(Call call) {
    const int64_t features = call.problem.features;
    const int64_t blocks = feature_blocks(call);
    const int64_t b = block_index() / blocks;
    const int64_t k = block_index() % blocks * kPrepareThreads + thread_index();
    if (k >= features) return;
    double total = 0.0;
    bool known = false;
    for (int64_t local = call.resumes[b]; local < call.here; ++local) {
        const Joint joint = call.joints[b * call.wave + local];
        if (joint.fresh == 0.0) continue;
        const double mean = call.means[(b * call.wave + local) * features + k];
        if (joint.old == 0.0) {
            total = mean;
        } else {
            if (!known) total = call.total_means[b * features + k];
            total = joint.old * total + joint.fresh * mean;
        }
        known = true;
    }
    if (known) call.total_means[b * features + k] = total;
}

DIFFGEN_KERNEL(kPrepareThreads, 4) write_results(Call call) {
    const int64_t features = call.problem.features;
    const int64_t blocks = feature_blocks(call);
    const int64_t b = block_index() / blocks;
    const int64_t k = block_index() % blocks * kPrepareThreads + thread_index();
    if (k >= features) return;
    const State& total = call.totals[b];
    const Query& query = call.queries[b].query;
    const bool known = query.finite && !total.empty();
    double mean = NAN;
    if (known) {
        const double factor = call.problem.scale / total.sums.quantised;
        const double offset = factor * call.total_means[b * features + k];
        mean = call.origin + offset;
    }
    if (call.output.mean_is_double) {
        static_cast<double*>(call.output.mean)[b * features + k] = mean;
    } else {
        static_cast<float*>(call.output.mean)[b * features + k] = static_cast<float>(mean);
    }
    if (k != 0) return;
    double logsumexp = NAN;
    if (known) {
        const bool apart = query.sigma_is_zero && total.nearest_square > 0.0;
        logsumexp =
            apart ? -INFINITY : (total.reference - query.constant) + fixed_log(total.sums.mass);
    }
    call.output.logsumexp[b] = logsumexp;
}

}  // namespace

}  // namespace diffgen::cuda
