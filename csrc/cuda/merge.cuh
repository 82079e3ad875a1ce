// Segments into the result, from left to right, and the result into the outputs.
#pragma once

#include "prepare.cuh"
#include "sums_sparse.cuh"

namespace diffgen::cuda {

namespace {

// Rows of a group of queries in a segment from which on they are summed by matrix products.
constexpr int kDenseRows = 512;

// Segments whose parts a block chains at a time, one a thread.
constexpr int kLinks = kPrepareThreads;

struct ChainRoom {
    Shared<double> references;  // of the parts, then the larger of each and those before it
    Shared<double> squares;
    Shared<double> quantised;
    Shared<double> masses;
    Shared<double> olds;
    Shared<double> freshes;
    Shared<double> reference;  // (1,) of the segments so far
    Shared<int32_t> resumes;   // (1,)
};

constexpr int kChainShared = 6 * 8 * kLinks + 2 * 16;

// How the parts of at most kLinks segments join, where the reference is the largest so far: each
// thread finds its own part's factors.
DIFFGEN_DEVICE void join_side_by_side(const ChainRoom& room, double margin) {
    const int at = thread_index();
    const double own = room.references[at];
    double largest = at == 0 ? larger(room.reference[0], own) : own;
    room.references[at] = largest;
    sync_threads();
    for (int step = 1; step < kLinks; step *= 2) {
        if (at >= step) largest = larger(largest, room.references[at - step]);
        sync_threads();
        room.references[at] = largest;
        sync_threads();
    }
    State before;
    before.reference = at == 0 ? room.reference[0] : room.references[at - 1];
    const Factors factors = meet(before, own, INFINITY, margin, false);
    room.olds[at] = factors.old;
    room.freshes[at] = factors.fresh;
}

// A block merges a query's posteriors over the segments of the wave, but for their means.
DIFFGEN_KERNEL(kPrepareThreads, 4) chain_parts(Call call) {
    const int64_t b = block_index();
    const int at = thread_index();
    const Query& query = call.queries[b].query;
    SharedMemory memory;
    const ChainRoom room{memory.take<double>(kLinks), memory.take<double>(kLinks),
                         memory.take<double>(kLinks), memory.take<double>(kLinks),
                         memory.take<double>(kLinks), memory.take<double>(kLinks),
                         memory.take<double>(1),      memory.take<int32_t>(1)};
    State total = call.totals[b];  // of the first thread alone
    if (at == 0) {
        room.reference[0] = total.reference;
        room.resumes[0] = 0;
    }
    for (int64_t first = 0; first < call.here; first += kLinks) {
        const int64_t local = first + at;
        State part;
        if (local < call.here) part = call.parts[b * call.wave + local].state;
        room.references[at] = part.reference;
        room.squares[at] = part.nearest_square;
        room.quantised[at] = part.sums.quantised;
        room.masses[at] = part.sums.mass;
        if (!query.sigma_is_zero) join_side_by_side(room, query.margin);
        sync_threads();
        if (at == 0) {
            const int64_t rest = call.here - first;
            const int links = rest < kLinks ? static_cast<int>(rest) : kLinks;
            for (int i = 0; i < links; ++i) {
                const double square = room.squares[i];
                Factors factors;
                if (query.sigma_is_zero) {
                    factors = meet(total, room.references[i], square, query.margin, true);
                    room.olds[i] = factors.old;
                    room.freshes[i] = factors.fresh;
                } else {
                    factors = {room.olds[i], room.freshes[i], room.references[i]};
                }
                Sums sums;
                sums.quantised = room.quantised[i];
                sums.mass = room.masses[i];
                join(total, sums, factors.reference, square, factors);
                if (factors.old == 0.0) room.resumes[0] = static_cast<int32_t>(first) + i;
            }
            room.reference[0] = total.reference;
        }
        sync_threads();
        if (local < call.here) {
            call.joints[b * call.wave + local] = {room.olds[at], room.freshes[at]};
        }
    }
    const int32_t resumes = room.resumes[0];
    if (at == 0) {
        call.totals[b] = total;
        call.resumes[b] = resumes;
    }
    for (int64_t local = at; local < call.here; local += kLinks) {
        const int64_t pair = b * call.wave + local;
        Weighed weighed;
        if (local >= resumes && call.joints[pair].fresh != 0.0) {
            weighed.digits = static_cast<int16_t>(call.parts[pair].digits);
            weighed.listed = static_cast<int16_t>(call.parts[pair].listed);
        }
        call.weighed[pair] = weighed;
    }
}

// A thread chooses how a group of queries sums a segment. Steps of matrix products are of 32 rows.
DIFFGEN_KERNEL(kPrepareThreads, 4) choose_courses(Call call) {
    const int64_t groups = groups_of(call.problem.batch);
    const int64_t at = block_index() * kPrepareThreads + thread_index();
    if (at >= groups * call.here) return;
    const int64_t group = at / call.here;
    const int64_t local = at % call.here;
    int32_t listed = 0;
    int32_t digits = 0;
    for (int64_t b = group * kGroup; b < (group + 1) * kGroup && b < call.problem.batch; ++b) {
        const Weighed weighed = call.weighed[b * call.wave + local];
        listed += weighed.listed;
        digits = weighed.digits > digits ? weighed.digits : digits;
    }
    const bool enough = call.dense < 0 ? listed >= kDenseRows : call.dense == 1;
    call.courses[group * call.wave + local] = call.tile >= 32 && enough ? digits : 0;
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
