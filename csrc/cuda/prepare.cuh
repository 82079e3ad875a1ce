// What is done before the rows are read: where segments begin, how long rows are, and the queries
// in fixed point.
#pragma once

#include "rows.cuh"

namespace diffgen::cuda {

namespace {

constexpr int kPrepareThreads = 128;
constexpr int kListThreads = 256;
constexpr int kListShared = 4 * (kListThreads / 32);
constexpr int kWarps = kPrepareThreads / 32;
// Sums of a split that are formed side by side.
constexpr int kSplitSums = 2 * kQueryDigits + 1;

// The larger of the values of all threads.
DIFFGEN_DEVICE double block_largest(double value, Shared<double> room) {
    value = largest_of(value, 32);
    if (lane_index() == 0) room[warp_index()] = value;
    sync_threads();
    double largest = room[0];
    for (int w = 1; w < kWarps; ++w) largest = larger(largest, room[w]);
    sync_threads();
    return largest;
}

// A thread finds the first eligible row of a segment.
DIFFGEN_DEVICE void find_begin(const Call& call, int64_t segment) {
    if (segment > call.segments) return;
    const int64_t id = segment * kSegmentRows;
    int64_t low = 0;
    int64_t high = call.eligible;
    if (call.problem.rows == nullptr) {
        low = id < high ? id : high;
    } else {
        while (low < high) {
            const int64_t middle = low + (high - low) / 2;
            if (call.problem.rows[middle] < id) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
    }
    call.begins[segment] = low;
}

// What is asked of the rows alone: the first blocks measure their lengths, the others cut segments.
DIFFGEN_KERNEL(kPrepareThreads, 4) survey_rows(Call call) {
    if (block_index() >= kLengthBlocks) {
        find_begin(call, (block_index() - kLengthBlocks) * kPrepareThreads + thread_index());
        return;
    }
    SharedMemory memory;
    const Shared<double> room = memory.take<double>(kWarps);
    double largest = 0.0;
    const int64_t step = int64_t{kLengthBlocks} * kPrepareThreads;
    for (int64_t at = block_index() * kPrepareThreads + thread_index(); at < call.eligible;
         at += step) {
        largest = larger(largest, call.problem.norms[row_id(call, at)]);
    }
    largest = block_largest(largest, room);
    if (thread_index() == 0) call.lengths[block_index()] = largest;
}

// Moves a query to the origin. Returns the largest magnitude of this thread's features.
template <typename T>
DIFFGEN_DEVICE double move_query(const T* query, double shift, int64_t features, double* x) {
    constexpr int kAtOnce = 8;  // loads, before a store that might be to the same place
    double largest = 0.0;
    for (int64_t first = thread_index(); first < features; first += kAtOnce * kPrepareThreads) {
        T loaded[kAtOnce];
        DIFFGEN_UNROLL_ALL
        for (int i = 0; i < kAtOnce; ++i) {
            const int64_t k = first + i * kPrepareThreads;
            loaded[i] = k < features ? query[k] : T(0);
        }
        DIFFGEN_UNROLL_ALL
        for (int i = 0; i < kAtOnce; ++i) {
            const int64_t k = first + i * kPrepareThreads;
            if (k >= features) break;
            const double moved = static_cast<double>(loaded[i]) - shift;
            x[k] = moved;
            largest = larger(largest, fabs(moved));
        }
    }
    return largest;
}

// Digits of the features of one chain, by eight lanes, and the chain's sums in their first lane.
DIFFGEN_DEVICE void split_chain(const Call& call, int64_t b, int64_t begin, double unit,
                                double (&sums)[kSplitSums]) {
    const double* const x = call.x + b * call.problem.features;
    const double step = 1.0 / unit;
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kSplitSums; ++i) sums[i] = 0.0;
    for (int64_t k = begin + lane_index() % kLanes; k < begin + kChain; k += kLanes) {
        if (k >= call.stride) break;
        const double here = k < call.problem.features ? x[k] : 0.0;
        int64_t z = fixed_round(here * unit);
        sums[2 * kQueryDigits] += here * here;
        double power = step;
        DIFFGEN_UNROLL_ALL
        for (int j = kQueryDigits - 1; j >= 0; --j) {
            const double kept = static_cast<double>(z) * power;
            const double gap = here - kept;
            sums[j] += gap * gap;
            sums[kQueryDigits + j] += kept * kept;
            const int8_t digit = j > 0 ? take_digit(z) : static_cast<int8_t>(z);
            call.digits[(j * call.problem.batch + b) * call.stride + k] = digit;
            power *= 256.0;
        }
    }
    DIFFGEN_UNROLL_ALL
    for (int i = 0; i < kSplitSums; ++i) {
        // As in sum_lanes.
        sums[i] += shuffle_xor(sums[i], 4);
        sums[i] += shuffle_xor(sums[i], 2);
        sums[i] += shuffle_xor(sums[i], 1);
    }
}

DIFFGEN_DEVICE int64_t chains_of(int64_t features) {
    return (features + kChain - 1) / kChain;
}

// A block prepares a query.
DIFFGEN_KERNEL(kPrepareThreads, 4) prepare_queries(Call call) {
    const Problem& problem = call.problem;
    const int64_t b = block_index();
    const int64_t chains = chains_of(problem.features);
    SharedMemory memory;
    const Shared<double> room = memory.take<double>(kWarps);
    const Shared<double> totals = memory.take<double>(kSplitSums);
    const Shared<double> chain_sums = memory.take<double>(static_cast<int>(chains) * kSplitSums);
    const double alpha = problem.alpha ? problem.alpha[b] : 1.0;
    const double shift = alpha * call.origin;
    const int64_t at = b * problem.features;
    double* const x = call.x + at;
    const double own_largest =
        problem.query_is_double
            ? move_query(static_cast<const double*>(problem.query) + at, shift, problem.features, x)
            : move_query(static_cast<const float*>(problem.query) + at, shift, problem.features, x);
    const double largest = block_largest(own_largest, room);
    double own_length = 0.0;
    for (int i = thread_index(); i < kLengthBlocks; i += kPrepareThreads) {
        own_length = larger(own_length, call.lengths[i]);
    }
    const double longest = sqrt(block_largest(own_length, room));
    const double unit = unit_of(largest);
    constexpr int kGroups = kPrepareThreads / kLanes;
    for (int64_t first = 0; first < chains; first += kGroups) {
        const int64_t chain = first + thread_index() / kLanes;
        double sums[kSplitSums];
        split_chain(call, b, chain * kChain, unit, sums);
        if (chain < chains && thread_index() % kLanes == 0) {
            for (int i = 0; i < kSplitSums; ++i) {
                chain_sums[static_cast<int>(chain) * kSplitSums + i] = sums[i];
            }
        }
    }
    sync_threads();
    if (thread_index() < kSplitSums) {
        double total = 0.0;
        for (int chain = 0; chain < chains; ++chain) {
            total += chain_sums[chain * kSplitSums + thread_index()];
        }
        totals[thread_index()] = total;
    }
    sync_threads();
    if (thread_index() != 0) return;
    const Rows rows{problem.features, problem.count, call.eligible, longest};
    Split split{};
    for (int j = 0; j < kQueryDigits; ++j) {
        split.lost[j] = totals[j];
        split.squares[j] = totals[kQueryDigits + j];
    }
    split.square = totals[2 * kQueryDigits];
    // In place: what is indexed at run time would lie on the stack.
    QueryState& state = call.queries[b];
    state = QueryState();
    state.point.alpha = alpha;
    state.point.row_scale = alpha * problem.scale;
    state.point.finite = split.square < INFINITY;
    measure(split, unit, shift, rows, state.point);
    decide(state.point, problem.sigma[b], problem.exclude ? problem.exclude[b] : -1, rows,
           call.demands, state.query);
    state.planes = call.planes > 0 ? call.planes : first_planes(state.point, state.query, longest);
    if (state.planes > state.query.digits) state.planes = state.query.digits;
    state.terms = bound_terms(state.point, state.planes, rows);
    state.terms.correction = 0;
    call.totals[b] = State();
}

DIFFGEN_DEVICE bool wants_nearest(const Query& query) {
    return query.finite && query.by_differences && !query.sigma_is_zero;
}

// Lists the numbers that are wanted, none of them `count` or more, in their order, by a block.
// Returns how many there are.
template <typename Wanted>
DIFFGEN_DEVICE int32_t list_wanted(int64_t count, Shared<int32_t> counts, int32_t* list,
                                   Wanted wanted) {
    int32_t before = 0;
    for (int64_t first = 0; first < count; first += kListThreads) {
        const int64_t number = first + thread_index();
        const bool listed = wanted(number);
        const uint32_t mask = ballot(listed);
        if (lane_index() == 0) counts[warp_index()] = count_bits(mask);
        sync_threads();
        int32_t place = before + count_bits(mask & ((1u << lane_index()) - 1));
        for (int w = 0; w < kListThreads / 32; ++w) {
            if (w < warp_index()) place += counts[w];
            before += counts[w];
        }
        if (listed) list[place] = static_cast<int32_t>(number);
        sync_threads();
    }
    return before;
}

// A block for each pass lists the columns of the digits that screen: for nearest rows, for sums.
DIFFGEN_KERNEL(kListThreads, 1) list_columns(Call call) {
    SharedMemory memory;
    const Shared<int32_t> counts = memory.take<int32_t>(kListThreads / 32);
    const int64_t batch = call.problem.batch;
    const int64_t pass = block_index();
    int32_t* const list = call.columns + pass * kQueryDigits * batch;
    const int32_t count = list_wanted(kQueryDigits * batch, counts, list, [&](int64_t column) {
        const QueryState& state = call.queries[column % batch];
        return column / batch < state.planes &&
               (pass == kForNearest ? wants_nearest(state.query) : state.query.finite);
    });
    if (thread_index() == 0) call.column_count[pass] = count;
}

}  // namespace

}  // namespace diffgen::cuda
