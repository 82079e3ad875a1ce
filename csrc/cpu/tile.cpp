#include "tile.h"

#include <algorithm>
#include <cmath>

namespace diffgen::cpu {

namespace {

constexpr int64_t kTileBytes = 450 * 1024;
constexpr int64_t kFewestRows = 12;
constexpr int64_t kMostRows = 240;
// Products are formed in float64 from the tile on in which more than this share of the rows had to
// be decided, and in float32 again when fewer than the lower share matter.
constexpr double kWidenAbove = 0.3;
constexpr double kNarrowBelow = 0.15;
// A tile's largest bound may be that many times the tolerance when the typical one is below it.
constexpr double kMostOver = 8.0;
constexpr double kLargestProduct = 1e30;
// At sigma = 0 squared distances under this share of the squared lengths are nothing: rows are
// decoded in float64.
constexpr double kCoincident = 0x1p-98;

int64_t bytes_of(Storage storage) {
    switch (storage) {
        case Storage::u8:
            return 1;
        case Storage::f16:
        case Storage::bf16:
            return 2;
        case Storage::f32:
            return 4;
        default:
            return 8;
    }
}

int64_t tile_rows(int64_t row_bytes) {
    const int64_t fitting = kTileBytes / std::max<int64_t>(row_bytes, 1);
    const int64_t rows = std::clamp(fitting, kFewestRows, kMostRows);
    return rows >= kSumChain ? rows / kSumChain * kSumChain : rows;
}

}  // namespace

RowTile::RowTile(const Problem& problem)
    : problem_(problem),
      row_bytes_(problem.features * bytes_of(problem.storage)),
      capacity_(tile_rows(row_bytes_)),
      rows_(capacity_),
      ahead_(capacity_),
      ids_(capacity_),
      norms_(capacity_),
      lengths_(capacity_),
      log_weights_(capacity_) {}

void RowTile::load(int64_t begin, int64_t end, int64_t last) {
    count_ = end - begin;
    longest_ = 0.0;
    for (int64_t r = 0; r < count_; ++r) {
        const int64_t id = id_of(begin + r);
        ids_[r] = id;
        rows_[r] = row_of(begin + r);
        ahead_[r] = end + r < last ? row_of(end + r) : rows_[r];
        norms_[r] = problem_.norms[id];
        log_weights_[r] = problem_.log_weights ? problem_.log_weights[id] : 0.0;
        lengths_[r] = std::sqrt(norms_[r]);
        longest_ = std::max(longest_, lengths_[r]);
    }
    fetch_ = end < last;
}

int64_t RowTile::find(int64_t id) const {
    const int64_t* const begin = ids_.data();
    const int64_t* const end = begin + count_;
    const int64_t* const found = std::lower_bound(begin, end, id);
    return found != end && *found == id ? found - begin : -1;
}

TileLogits::TileLogits(const Problem& problem, const Kernels& kernels, int64_t queries,
                       int64_t rows, bool anchored)
    : problem_(problem),
      machine_(kernels),
      kernels_(kernels.storage[static_cast<int>(problem.storage)]),
      stride_(padded_stride<double>(rows)),
      products_(queries * stride_),
      outs_(queries),
      lows_(queries),
      wides_(queries),
      logits_(rows),
      distances_(rows),
      exact_(rows),
      positions_(rows),
      chosen_distances_(rows),
      anchor_stride_(padded_stride<double>(problem.features)),
      anchors_(anchored ? queries * anchor_stride_ : 0) {
    survivors_.rows = positions_.data();
    survivors_.logits = logits_.data();
    survivors_.distances = chosen_distances_.data();
}

void TileLogits::form(const QueryBlock& queries, const RowTile& tile, Outlook* outlooks) {
    for (int64_t i = 0; i < queries.count(); ++i) {
        // Products that float32 cannot hold.
        if (queries[i].length * tile.longest() > kLargestProduct) outlooks[i].wide = true;
    }
    const void* const* ahead = tile.ahead();
    for (const bool wide : {false, true}) {
        int64_t chosen = 0;
        for (int64_t i = 0; i < queries.count(); ++i) {
            if (!queries[i].finite || outlooks[i].wide != wide) continue;
            outs_[chosen] = products_.data() + i * stride_;
            lows_[chosen] = queries[i].low;
            wides_[chosen] = queries[i].wide;
            ++chosen;
        }
        if (chosen == 0) continue;
        if (wide) {
            kernels_.products_f64(tile.rows(), tile.count(), wides_.data(), chosen,
                                  problem_.features, ahead, outs_.data());
        } else {
            kernels_.products_f32(tile.rows(), tile.count(), lows_.data(), chosen,
                                  problem_.features, ahead, outs_.data());
        }
        ahead = nullptr;
    }
}

double TileLogits::exact_distance(const Query& query, const RowTile& tile, int64_t r) {
    if (!exact_[r]) {
        distances_[r] =
            kernels_.distance(tile.rows()[r], query.wide, query.row_scale, problem_.features);
        exact_[r] = 1;
    }
    return distances_[r];
}

const Survivors& TileLogits::select(const Query& query, int64_t i, const RowTile& tile,
                                    Outlook& outlook) {
    const double* const products = products_.data() + i * stride_;
    const LogitTerms terms{query.square, 2.0 * query.row_scale, query.alpha * query.alpha,
                           query.kappa, outlook.anchor_distance};
    double largest = machine_.logits(products, tile.norms(), tile.log_weights(), tile.count(),
                                     terms, distances_.data(), logits_.data());
    std::fill_n(exact_.data(), tile.count(), 0);
    const int64_t excluded = query.exclude < 0 ? -1 : tile.find(query.exclude);
    if (excluded >= 0) {
        logits_[excluded] = -INFINITY;
        largest = *std::max_element(logits_.data(), logits_.data() + tile.count());
    }
    const double longest = tile.longest();
    distance_error_ = outlook.wide ? query.wide_error(longest) : query.low_error(longest);
    survivors_.count = 0;
    outlook.shift = 0.0;
    if (query.sigma_is_zero) {
        select_nearest(query, tile, outlook);
        return survivors_;
    }
    const double bound = query.kappa * distance_error_;
    // The mean's error is at most the root mean square of the bounds over the weights, times half
    // the range. It is met where a row of typical length meets it, unless the weights are on long
    // rows: the sum of the squared bounds shows that in the end.
    const double length = query.careful ? longest : query.typical_length;
    const double expected =
        query.kappa * (outlook.wide ? query.wide_error(length) : query.low_error(length));
    const bool final = expected <= query.tolerance && bound <= kMostOver * query.tolerance;
    survivors_.error_slope = final && !outlook.wide ? query.kappa * query.low_slope : 0.0;
    survivors_.error_floor = final ? query.kappa * query.wide_error(longest) : 0.0;
    outlook.best = std::max(outlook.best, final ? largest : largest - bound);
    double cutoff = outlook.best - query.margin - (final ? 0.0 : bound);
    int64_t count = 0;
    for (int64_t r = 0; r < tile.count(); ++r) {
        // Written so that an infinite or NaN bound lets every eligible row through.
        if (logits_[r] == -INFINITY || logits_[r] < cutoff) continue;
        positions_[count] = r;
        logits_[count] = logits_[r];
        chosen_distances_[count] = distances_[r];
        ++count;
    }
    survivors_.count = count;
    const double share = static_cast<double>(count) / static_cast<double>(tile.count());
    if (!final) {
        decide(query, i, tile, outlook);
        for (int64_t s = 0; s < count; ++s) {
            outlook.best = std::max(outlook.best, logits_[s]);
        }
        cutoff = outlook.best - query.margin;
        int64_t kept = 0;
        for (int64_t s = 0; s < count; ++s) {
            if (logits_[s] < cutoff) continue;
            positions_[kept] = positions_[s];
            logits_[kept] = logits_[s];
            chosen_distances_[kept] = chosen_distances_[s];
            ++kept;
        }
        survivors_.count = kept;
        const bool would_be_final = query.kappa * query.wide_error(longest) <= query.tolerance;
        if (share > kWidenAbove && would_be_final) outlook.wide = true;
    } else if (outlook.wide && share < kNarrowBelow && !(query.careful && query.is_double)) {
        outlook.wide = false;
    }
    return survivors_;
}

void TileLogits::decide(const Query& query, int64_t i, const RowTile& tile, Outlook& outlook) {
    if (!query.anchored) {
        for (int64_t s = 0; s < survivors_.count; ++s) {
            const int64_t r = positions_[s];
            chosen_distances_[s] = exact_distance(query, tile, r);
            logits_[s] = tile.log_weight(r) - query.kappa * chosen_distances_[s];
        }
        return;
    }
    // About the anchor; a row clearly nearer than it becomes the anchor, and all are done again.
    for (bool settled = survivors_.count == 0; !settled;) {
        settled = true;
        int64_t nearest = positions_[0];
        double least = INFINITY;
        for (int64_t s = 0; s < survivors_.count; ++s) {
            const int64_t r = positions_[s];
            const double beyond =
                outlook.anchor ? excess(query, i, tile.rows()[r]) : exact_distance(query, tile, r);
            chosen_distances_[s] = outlook.anchor_distance + beyond;
            logits_[s] = tile.log_weight(r) - query.kappa * beyond;
            if (beyond < least) {
                least = beyond;
                nearest = r;
            }
        }
        if (!outlook.anchor || query.kappa * least < -1.0) {
            move_anchor(query, i, tile, outlook, nearest);
            settled = false;
        }
    }
}

double TileLogits::excess(const Query& query, int64_t i, const void* row) {
    return kernels_.excess(row, query.wide, anchors_.data() + i * anchor_stride_, query.row_scale,
                           problem_.features);
}

void TileLogits::move_anchor(const Query& query, int64_t i, const RowTile& tile, Outlook& outlook,
                             int64_t r) {
    const double distance = exact_distance(query, tile, r);
    const double nearer = outlook.anchor ? excess(query, i, tile.rows()[r]) : distance;
    double* anchor = anchors_.data() + i * anchor_stride_;
    // The row itself: a weighted sum of one.
    std::fill_n(anchor, problem_.features, 0.0);
    const double* const weight = &query.row_scale;
    kernels_.accumulate_f64(tile.rows() + r, 1, &weight, 1, problem_.features, &anchor);
    outlook.shift += query.kappa * nearer;
    outlook.best += query.kappa * nearer;
    outlook.anchor = tile.rows()[r];
    outlook.anchor_distance = distance;
}

void TileLogits::select_nearest(const Query& query, const RowTile& tile, Outlook& outlook) {
    // Here `best` is less the smallest squared distance, whatever the weights.
    const double alpha2 = query.alpha * query.alpha;
    int64_t count = 0;
    for (int64_t r = 0; r < tile.count(); ++r) {
        if (tile.id(r) == query.exclude || tile.log_weight(r) == -INFINITY) continue;
        if (distances_[r] - distance_error_ > -outlook.best * (1.0 + kTie)) continue;
        double distance = exact_distance(query, tile, r);
        if (distance <= kCoincident * (query.square + alpha2 * tile.norm(r))) {
            distance = distances_[r] = 0.0;
        }
        if (distance > -outlook.best * (1.0 + kTie)) continue;
        outlook.best = std::max(outlook.best, -distance);
        positions_[count++] = r;
    }
    int64_t kept = 0;
    for (int64_t s = 0; s < count; ++s) {
        const int64_t r = positions_[s];
        if (distances_[r] > -outlook.best * (1.0 + kTie)) continue;
        positions_[kept] = r;
        logits_[kept] = tile.log_weight(r);
        ++kept;
    }
    survivors_.count = kept;
}

}  // namespace diffgen::cpu
