// Rows of a tile against a block of queries: which rows can matter, and their logits.
//
// Products select, differences decide: the products give every logit with a bound on its error.
// Where the bound is under the query's tolerance the logits are final; elsewhere the rows that can
// still matter get their distance again by float64 differences while they are in the cache.
#pragma once

#include <cstdint>

#include "buffer.h"
#include "query.h"

namespace diffgen::cpu {

// Squared distances closer than this, relatively, are the same at sigma = 0.
constexpr double kTie = 1e-12;

// Rows that fit the second-level cache together.
class RowTile {
  public:
    explicit RowTile(const Problem& problem);

    int64_t capacity() const { return capacity_; }
    // Takes eligible rows [begin, end), numbered as in `Problem::rows`; `last` is where those of
    // the tiles to come end.
    void load(int64_t begin, int64_t end, int64_t last);

    int64_t count() const { return count_; }
    const void* const* rows() const { return rows_.data(); }
    // As many rows that come next; null where there are none.
    const void* const* ahead() const { return fetch_ ? ahead_.data() : nullptr; }
    const double* norms() const { return norms_.data(); }
    const double* log_weights() const { return log_weights_.data(); }
    // Where the row of that id is in the tile, -1 where it is not.
    int64_t find(int64_t id) const;
    int64_t id(int64_t r) const { return ids_[r]; }
    double norm(int64_t r) const { return norms_[r]; }
    double log_weight(int64_t r) const { return log_weights_[r]; }
    double length(int64_t r) const { return lengths_[r]; }  // |row - origin|
    double longest() const { return longest_; }

  private:
    int64_t id_of(int64_t at) const { return problem_.rows ? problem_.rows[at] : at; }
    const void* row_of(int64_t at) const {
        return static_cast<const unsigned char*>(problem_.data) + id_of(at) * row_bytes_;
    }

    const Problem& problem_;
    int64_t row_bytes_;
    int64_t capacity_;
    int64_t count_ = 0;
    double longest_ = 0.0;
    bool fetch_ = false;
    Buffer<const void*> rows_;
    Buffer<const void*> ahead_;
    Buffer<int64_t> ids_;
    Buffer<double> norms_;
    Buffer<double> lengths_;
    Buffer<double> log_weights_;
};

// What a thread knows of a query before a tile: kept between tiles.
//
// Logits are those of the squared distances less `anchor_distance`. It is zero for most float
// queries; for anchored ones it is that of a near row, the anchor, about which the excess of
// another row is found without the rounding of the distances themselves.
struct Outlook {
    double best = -1e308;  // a lower bound of the largest logit
    bool wide = false;     // whether products are formed in float64
    const void* anchor = nullptr;
    double anchor_distance = 0.0;
    double shift = 0.0;  // by how much the last `select` moved all logits, with the anchor
};

// Rows of a tile that matter to a query, in ascending order, with final logits.
struct Survivors {
    int64_t count = 0;
    int64_t* rows;      // positions in the tile
    double* logits;     // final
    double* distances;  // squared, as the logits have them
    // The logit of row r is known to within this times its length and that; zero where decided.
    double error_slope = 0.0;
    double error_floor = 0.0;
};

class TileLogits {
  public:
    // With room for anchors where queries are `anchored`.
    TileLogits(const Problem& problem, const Kernels& kernels, int64_t queries, int64_t rows,
               bool anchored);

    // Products of all rows of the tile with all finite queries.
    void form(const QueryBlock& queries, const RowTile& tile, Outlook* outlooks);
    // The rows that matter to query i; updates its outlook.
    const Survivors& select(const Query& query, int64_t i, const RowTile& tile, Outlook& outlook);
    // Squared distance of a row by float64 differences, computed once per tile and query.
    double exact_distance(const Query& query, const RowTile& tile, int64_t r);
    // Squared distance of a row less that of query i's anchor, without the rounding of either.
    double excess(const Query& query, int64_t i, const void* row);
    // Squared distances of all rows of the tile, exact where they were asked for.
    const double* distances() const { return distances_.data(); }
    // After `select`: a bound on the error of `distances`, where they are not exact.
    double distance_error() const { return distance_error_; }
    const StorageKernels& kernels() const { return kernels_; }

  private:
    void select_nearest(const Query& query, const RowTile& tile, Outlook& outlook);
    void decide(const Query& query, int64_t i, const RowTile& tile, Outlook& outlook);
    void move_anchor(const Query& query, int64_t i, const RowTile& tile, Outlook& outlook,
                     int64_t r);

    const Problem& problem_;
    const Kernels& machine_;
    const StorageKernels& kernels_;
    int64_t stride_;
    Buffer<double> products_;  // (queries, rows)
    Buffer<double*> outs_;
    Buffer<const float*> lows_;
    Buffer<const double*> wides_;
    Buffer<double> logits_;
    Buffer<double> distances_;
    Buffer<unsigned char> exact_;
    Buffer<int64_t> positions_;
    Buffer<double> chosen_distances_;
    Survivors survivors_;
    // The anchor of each query.
    int64_t anchor_stride_;
    Buffer<double> anchors_;
    double distance_error_ = 0.0;
};

}  // namespace diffgen::cpu
