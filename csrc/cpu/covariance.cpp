// The covariance of the posterior times a vector: backward, forward-mode derivative and Cov v.
//
//   product = sum_i w_i (y_i - m) [ (y_i - m).v + radial rho_i ],  rho_i = r_i - |x - alpha m|^2
//   moment  = [ sum_i w_i ((y_i - m).v) rho_i,  sum_i w_i rho_i ]
//
// with the mean m and the logsumexp given, so that the sums are additive over blocks of rows. The
// sums are float64: they cancel where the posterior is narrow.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "engine.h"
#include "partition.h"
#include "pool.h"
#include "query.h"
#include "tile.h"

namespace diffgen::cpu {

namespace {

// Where one row has nearly all the weight the covariance is that of the next ones: rows are kept
// down to weights of e^-60, below which sigma^-2 does not raise them to anything.
constexpr double kMargin = 60.0;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// What the whole call needs of each query beside the problem.
struct Direction {
    const double* mean;
    const double* v;
    double logsumexp;
    double radial;
    double centre_product;   // (m - origin).v
    double centre_distance;  // |x - alpha m|^2
};

struct Sums {
    double* rows;              // sum of coefficient z
    double reference;          // the logsumexp, referred to the anchor of the logits
    double coefficient = 0.0;  // sum of coefficients
    double moment[2] = {0.0, 0.0};
};

class Worker {
  public:
    Worker(const Problem& problem, const Kernels& kernels, int64_t queries)
        : problem_(problem),
          kernels_(kernels),
          tile_(problem),
          logits_(problem, kernels, queries, tile_.capacity(), true),
          outlooks_(queries),
          stride_(padded_stride<double>(problem.features)),
          rows_(queries * stride_),
          sums_(queries),
          pointers_(tile_.capacity()),
          weights_(tile_.capacity()),
          products_(tile_.capacity()) {}

    void start(int64_t queries, const Direction* directions, const QueryBlock& block) {
        for (int64_t i = 0; i < queries; ++i) {
            sums_[i] = Sums{rows_.data() + i * stride_, directions[i].logsumexp};
            std::fill_n(sums_[i].rows, problem_.features, 0.0);
            outlooks_[i] = Outlook();
            // Distances enter the moment themselves: float64 queries have them in float64.
            outlooks_[i].wide = block[i].is_double;
            // The best logit is at least the logsumexp less the logarithm of the count.
            if (std::isfinite(directions[i].logsumexp)) {
                outlooks_[i].best = directions[i].logsumexp - block[i].log_rows;
            }
        }
    }

    void run(const QueryBlock& queries, const Direction* directions, int64_t begin, int64_t end,
             StopSign& stop, bool on_caller) {
        for (int64_t at = begin; at < end && !stop.check(on_caller); at += tile_.capacity()) {
            tile_.load(at, std::min(end, at + tile_.capacity()), end);
            logits_.form(queries, tile_, outlooks_.data());
            for (int64_t i = 0; i < queries.count(); ++i) {
                const bool wanted = queries[i].finite && !queries[i].sigma_is_zero;
                if (wanted) take(queries[i], directions[i], i);
            }
        }
    }

    const Sums& sums(int64_t i) const { return sums_[i]; }

  private:
    void take(const Query& query, const Direction& direction, int64_t i) {
        const Survivors& survivors = logits_.select(query, i, tile_, outlooks_[i]);
        Sums& sums = sums_[i];
        sums.reference += outlooks_[i].shift;
        if (survivors.count == 0) return;
        for (int64_t s = 0; s < survivors.count; ++s) {
            pointers_[s] = tile_.rows()[survivors.rows[s]];
        }
        double* const products = products_.data();
        logits_.kernels().products_f64(pointers_.data(), survivors.count, &direction.v, 1,
                                       problem_.features, nullptr, &products);
        kernels_.exponentials(survivors.logits, survivors.count, sums.reference, -INFINITY,
                              weights_.data());
        for (int64_t s = 0; s < survivors.count; ++s) {
            const double along = problem_.scale * products_[s] - direction.centre_product;
            const double rho = survivors.distances[s] - direction.centre_distance;
            const double weight = weights_[s];
            const double coefficient = weight * (along + direction.radial * rho);
            weights_[s] = coefficient;
            sums.coefficient += coefficient;
            sums.moment[0] += weight * along * rho;
            sums.moment[1] += weight * rho;
        }
        const double* const weights = weights_.data();
        logits_.kernels().accumulate_f64(pointers_.data(), survivors.count, &weights, 1,
                                         problem_.features, &sums.rows);
    }

    const Problem& problem_;
    const Kernels& kernels_;
    RowTile tile_;
    TileLogits logits_;
    Buffer<Outlook> outlooks_;
    int64_t stride_;
    Buffer<double> rows_;
    Buffer<Sums> sums_;
    Buffer<const void*> pointers_;
    Buffer<double> weights_;
    Buffer<double> products_;
};

struct Wave {
    const Partition& cut;
    StopSign& stop;
    std::vector<QueryBlock> blocks;
    std::vector<std::vector<Direction>> directions;
    std::vector<Worker> workers;

    static void run(void* context, int64_t task, bool on_caller) {
        Wave& wave = *static_cast<Wave*>(context);
        const int64_t block = task / wave.cut.chunks;
        const int64_t chunk = task % wave.cut.chunks;
        wave.workers[task].run(wave.blocks[block], wave.directions[block].data(),
                               wave.cut.chunk_begin(chunk), wave.cut.chunk_begin(chunk + 1),
                               wave.stop, on_caller);
    }
};

Direction direction_of(const Problem& problem, const CovarianceInput& input, const Query& query,
                       int64_t b) {
    Direction direction{};
    direction.mean = input.mean + b * problem.features;
    direction.v = input.v + b * problem.features;
    direction.logsumexp = input.logsumexp[b];
    direction.radial = input.radial ? input.radial[b] : 0.0;
    const double origin = problem.origin();
    for (int64_t k = 0; k < problem.features; ++k) {
        const double centre = direction.mean[k] - origin;
        const double gap = query.wide[k] - query.alpha * centre;
        direction.centre_product += centre * direction.v[k];
        direction.centre_distance += gap * gap;
    }
    return direction;
}

void write(const Problem& problem, const CovarianceOutput& output, int64_t b,
           const Direction& direction, const Worker* workers, int64_t chunks, int64_t i,
           bool finite) {
    double* const product = output.product + b * problem.features;
    double* const moment = output.moment + 2 * b;
    if (!finite) {
        std::fill_n(product, problem.features, kNaN);
        moment[0] = moment[1] = kNaN;
        return;
    }
    std::fill_n(product, problem.features, 0.0);
    moment[0] = moment[1] = 0.0;
    double coefficient = 0.0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const Sums& sums = workers[chunk].sums(i);
        coefficient += sums.coefficient;
        moment[0] += sums.moment[0];
        moment[1] += sums.moment[1];
        for (int64_t k = 0; k < problem.features; ++k) product[k] += sums.rows[k];
    }
    const double origin = problem.origin();
    for (int64_t k = 0; k < problem.features; ++k) {
        product[k] = problem.scale * product[k] - (direction.mean[k] - origin) * coefficient;
    }
}

}  // namespace

Outcome covariance_product(const Problem& problem, const CovarianceInput& input,
                           const CovarianceOutput& output, const Kernels& kernels,
                           const Control& control) {
    StopSign stop(control);
    const Partition cut = partition(problem, RowTile(problem).capacity(), control.threads);
    Wave wave{cut, stop, {}, {}, {}};
    for (int64_t i = 0; i < std::min(cut.blocks_at_once, cut.blocks) * cut.chunks; ++i) {
        wave.workers.emplace_back(problem, kernels, cut.block);
    }
    for (int64_t first = 0; first < cut.blocks; first += cut.blocks_at_once) {
        const int64_t last = std::min(cut.blocks, first + cut.blocks_at_once);
        wave.blocks.clear();
        wave.directions.clear();
        for (int64_t block = first; block < last; ++block) {
            const int64_t begin = block * cut.block;
            wave.blocks.emplace_back(problem, kernels, begin,
                                     std::min(problem.batch, begin + cut.block),
                                     Demands{true, true, kMargin, 0.0});
            std::vector<Direction> directions;
            for (int64_t i = 0; i < wave.blocks.back().count(); ++i) {
                directions.push_back(
                    direction_of(problem, input, wave.blocks.back()[i], begin + i));
            }
            wave.directions.push_back(std::move(directions));
        }
        const int64_t tasks = (last - first) * cut.chunks;
        for (int64_t task = 0; task < tasks; ++task) {
            const int64_t block = task / cut.chunks;
            wave.workers[task].start(wave.blocks[block].count(), wave.directions[block].data(),
                                     wave.blocks[block]);
        }
        run_tasks(tasks, control.threads, stop, &wave, Wave::run);
        if (stop.stopped()) return {Status::cancelled, -1, 0};
        for (int64_t block = first; block < last; ++block) {
            const QueryBlock& queries = wave.blocks[block - first];
            const Worker* const workers = &wave.workers[(block - first) * cut.chunks];
            for (int64_t i = 0; i < queries.count(); ++i) {
                const Direction& direction = wave.directions[block - first][i];
                // At sigma = 0 the posterior is constant but for jumps: no derivative is given.
                const bool given = queries[i].finite && !queries[i].sigma_is_zero &&
                                   !std::isnan(direction.logsumexp);
                write(problem, output, block * cut.block + i, direction, workers, cut.chunks, i,
                      given);
            }
        }
    }
    return {};
}

}  // namespace diffgen::cpu
