// The call: its kernels, one after the other on one stream. The host waits for nothing.

#include "decide.cuh"
#include "merge.cuh"
#include "moments.h"
#include "nearest.cuh"
#include "products_few.cuh"
#include "products_many.cuh"
#include "scratch.h"
#include "sums_dense.cuh"

namespace diffgen::cuda {

namespace {

// Up to so many queries the rows are read row by row, and up to so many for the digits that are
// left, of which there are two in general.
constexpr int64_t kFewQueries = 4;
constexpr int64_t kFewForRest = 2;
constexpr int64_t kMostBlocks = 0x7fffffff;

int64_t parts_of(int64_t count, int64_t size) {
    return (count + size - 1) / size;
}

// Launches kernels until one fails.
class Launcher {
  public:
    explicit Launcher(void* stream) : stream_(stream) {}

    void run(void (*kernel)(Call), int64_t blocks, int threads, int64_t shared, const Call& call) {
        if (error_) return;
        if (blocks > kMostBlocks) {
            error_ = "a grid has more than 2^31 - 1 blocks: fewer queries at once are needed";
            return;
        }
        error_ = launch(kernel, blocks, threads, static_cast<int>(shared), stream_, call);
    }

    const char* error() const { return error_; }

  private:
    void* stream_;
    const char* error_ = nullptr;
};

// Products of the wave's rows with the columns that are listed.
template <bool Aligned>
void form_products(Launcher& launcher, const Call& call) {
    const int64_t columns = kQueryDigits * call.problem.batch;
    if (call.few) {
        launcher.run(few_products<Aligned>, call.here * kFewBlocks, kFewThreads, 0, call);
    } else {
        launcher.run(many_products<Aligned>,
                     call.here * kManyBlocks * parts_of(columns, kManyColumns), kManyThreads,
                     kManyShared, call);
    }
}

template <bool Aligned>
void search_wave(Launcher& launcher, const Call& call) {
    form_products<Aligned>(launcher, call);
    const int64_t shared = 16 * kNearWarps + 4 * kWords;
    launcher.run(find_nearest, call.problem.batch * call.here, kNearThreads, shared, call);
    launcher.run(keep_nearest, parts_of(call.problem.batch, kPrepareThreads), kPrepareThreads, 0,
                 call);
}

template <bool Aligned>
void sum_wave(Launcher& launcher, const Call& call) {
    const int64_t batch = call.problem.batch;
    const int64_t features = call.problem.features;
    form_products<Aligned>(launcher, call);
    launcher.run(screen_segments, batch * call.here, kTileThreads, screen_bytes(call.tile), call);
    Call rest = call;
    rest.for_rest = true;
    rest.few = call.few_for_rest;
    launcher.run(list_rest, call.here, kListThreads, kListShared, rest);
    form_products<Aligned>(launcher, rest);
    launcher.run(decide_segments<Aligned>, batch * call.here, kTileThreads, decide_bytes(call.tile),
                 call);
    launcher.run(chain_parts, batch, kPrepareThreads, kChainShared, call);
    launcher.run(choose_courses, parts_of(groups_of(batch) * call.here, kPrepareThreads),
                 kPrepareThreads, 0, call);
    launcher.run(sparse_sums<Aligned>, batch * call.here * parts_of(features, kSparseFeatures),
                 kSparseThreads, 0, call);
    const int64_t blocks =
        parts_of(groups_of(batch), kDenseGroups) * call.here * parts_of(features, kDenseFeatures);
    launcher.run(dense_sums<Aligned, kUsualDigits>, blocks, kDenseThreads,
                 kDenseShared<kUsualDigits>, call);
    launcher.run(dense_sums<Aligned, kWeightDigits>, blocks, kDenseThreads,
                 kDenseShared<kWeightDigits>, call);
    launcher.run(merge_means, batch * parts_of(features, kPrepareThreads), kPrepareThreads, 0,
                 call);
}

template <bool Aligned>
void run_waves(Launcher& launcher, Call& call) {
    for (call.pass = 0; call.pass < kPasses; ++call.pass) {
        for (call.first = 0; call.first < call.segments; call.first += call.wave) {
            call.here = std::min(call.wave, call.segments - call.first);
            if (call.pass == kForNearest) {
                search_wave<Aligned>(launcher, call);
            } else {
                sum_wave<Aligned>(launcher, call);
            }
        }
    }
}

// Work on some queries, from their preparation to their results.
void run_batch(const Problem& problem, const MomentsOutput& output, void* scratch, int64_t wave,
               const Plan& plan, Launcher& launcher) {
    Call call{};
    call.problem = problem;
    call.output = output;
    call.origin = problem.origin();
    call.demands = {false, output.mean_is_double || problem.query_is_double};
    call.eligible = eligible_of(problem);
    call.segments = segments_of(problem);
    call.stride = digit_stride(problem.features);
    call.tile = static_cast<int32_t>(tile_rows(problem.features));
    while (1 << call.tile_shift < call.tile) ++call.tile_shift;
    call.tiles = static_cast<int32_t>(most_tiles(problem.features));
    call.planes = plan.screening_digits;
    call.dense = plan.dense;
    call.rest = plan.rest;
    call.wave = wave;
    cut(scratch, wave, call);
    const auto address = reinterpret_cast<uintptr_t>(problem.data);
    const bool aligned = !plan.always_masked && address % 16 == 0 && problem.features % 16 == 0;
    call.few = plan.few < 0 ? problem.batch <= kFewQueries : plan.few == 1;
    call.few_for_rest = plan.few < 0 ? problem.batch <= kFewForRest : plan.few == 1;
    launcher.run(survey_rows, kLengthBlocks + parts_of(call.segments + 1, kPrepareThreads),
                 kPrepareThreads, 16 * kWarps, call);
    const int64_t chains = parts_of(problem.features, kChain);
    launcher.run(prepare_queries, problem.batch, kPrepareThreads,
                 8 * kSplitSums * (chains + 1) + 64 * kWarps, call);
    launcher.run(list_columns, kPasses, kListThreads, kListShared, call);
    if (aligned) {
        run_waves<true>(launcher, call);
    } else {
        run_waves<false>(launcher, call);
    }
    launcher.run(write_results, problem.batch * parts_of(problem.features, kPrepareThreads),
                 kPrepareThreads, 0, call);
}

// Queries from b on, and their results.
Problem queries_from(Problem problem, int64_t b, int64_t batch) {
    const int64_t bytes = problem.features * (problem.query_is_double ? 8 : 4);
    problem.query = static_cast<const char*>(problem.query) + b * bytes;
    problem.sigma += b;
    if (problem.alpha) problem.alpha += b;
    if (problem.exclude) problem.exclude += b;
    problem.batch = std::min(batch, problem.batch - b);
    return problem;
}

MomentsOutput results_from(MomentsOutput output, int64_t b, int64_t features) {
    const int64_t bytes = features * (output.mean_is_double ? 8 : 4);
    output.mean = static_cast<char*>(output.mean) + b * bytes;
    output.logsumexp += b;
    return output;
}

}  // namespace

int64_t scratch_bytes(const Problem& problem) {
    const Share share = share_within(problem, kBudget);
    const bool fits = share.batch > 0 && (share.wave > 0 || segments_of(problem) == 0);
    return fits ? bytes_for(problem, share) : smallest_scratch_bytes(problem);
}

int64_t smallest_scratch_bytes(const Problem& problem) {
    return bytes_for(
        problem, {std::min<int64_t>(problem.batch, 1), std::min<int64_t>(segments_of(problem), 1)});
}

const char* moments(const Problem& problem, const MomentsOutput& output, void* scratch,
                    int64_t scratch_size, void* stream, const Plan& plan) {
    if (problem.storage != Storage::u8) return "needs 8-bit rows";
    if (problem.features > kMostFeatures) return "needs at most 131071 features";
    if (output.functionals || output.top_k) return "computes neither functionals nor nearest rows";
    if (reinterpret_cast<uintptr_t>(scratch) % kAlignment != 0) {
        return "the scratch memory does not begin at a multiple of 256 bytes";
    }
    if (problem.batch == 0) return nullptr;
    if (scratch_size < smallest_scratch_bytes(problem)) return "the scratch memory is too small";
    Share share = share_within(problem, scratch_size);
    if (plan.batch > 0) share.batch = std::min(share.batch, plan.batch);
    if (plan.wave > 0) share.wave = std::min(share.wave, plan.wave);
    Launcher launcher(stream);
    for (int64_t b = 0; b < problem.batch; b += share.batch) {
        run_batch(queries_from(problem, b, share.batch), results_from(output, b, problem.features),
                  scratch, share.wave, plan, launcher);
    }
    return launcher.error();
}

}  // namespace diffgen::cuda
