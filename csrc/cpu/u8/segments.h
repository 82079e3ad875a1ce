// The segments of a problem, and the tile of one that is at hand; see ../../u8/layout.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../../problem.h"
#include "../../u8/layout.h"
#include "../buffer.h"

namespace diffgen::cpu::u8 {

using namespace diffgen::u8;

// Eligible rows, numbered in ascending order of their ids.
class Segments {
  public:
    explicit Segments(const Problem& problem) : problem_(problem) {
        const int64_t rows = problem.rows ? problem.row_count : problem.count;
        begins_.push_back(0);
        if (problem.rows == nullptr) {
            for (int64_t at = kSegmentRows; at < rows; at += kSegmentRows) begins_.push_back(at);
        } else {
            for (int64_t at = 1; at < rows; ++at) {
                const bool next =
                    problem.rows[at] / kSegmentRows != problem.rows[at - 1] / kSegmentRows;
                if (next) begins_.push_back(at);
            }
        }
        if (rows > 0) begins_.push_back(rows);
    }

    int64_t count() const { return static_cast<int64_t>(begins_.size()) - 1; }
    int64_t begin(int64_t segment) const { return begins_[static_cast<size_t>(segment)]; }
    int64_t id(int64_t at) const { return problem_.rows ? problem_.rows[at] : at; }
    const uint8_t* row(int64_t at) const {
        return static_cast<const uint8_t*>(problem_.data) + id(at) * problem_.features;
    }

  private:
    const Problem& problem_;
    std::vector<int64_t> begins_;
};

class Tile {
  public:
    explicit Tile(const Problem& problem)
        : problem_(problem),
          capacity_(tile_rows(problem.features)),
          rows_(capacity_),
          ahead_(capacity_),
          early_(capacity_),
          ids_(capacity_),
          norms_(capacity_),
          log_weights_(capacity_) {}

    int64_t capacity() const { return capacity_; }

    // As many rows of a segment, from eligible row `begin` on, as there is room for.
    void load(const Segments& segments, int64_t segment, int64_t begin) {
        const int64_t last = segments.begin(segment + 1);
        const int64_t end = std::min(last, begin + capacity_);
        count_ = end - begin;
        place_ = begin - segments.begin(segment);
        for (int64_t r = 0; r < count_; ++r) {
            const int64_t id = segments.id(begin + r);
            ids_[r] = id;
            rows_[r] = segments.row(begin + r);
            ahead_[r] = end + r < last ? segments.row(end + r) : rows_[r];
            early_[r] = r % 4 ? ahead_[r] : rows_[r];
            norms_[r] = problem_.norms[id];
            log_weights_[r] = problem_.log_weights ? problem_.log_weights[id] : 0.0;
        }
        fetch_ = end < last;
    }

    int64_t count() const { return count_; }
    const uint8_t* const* rows() const { return rows_.data(); }
    // As many rows that come next; null where there are none.
    const uint8_t* const* ahead() const { return fetch_ ? ahead_.data() : nullptr; }
    // The same but for every fourth row, which a single query's weighted sum fetches: `early` goes
    // with its products, so that the memory is busy in both.
    const uint8_t* const* early() const { return fetch_ ? early_.data() : nullptr; }
    const double* norms() const { return norms_.data(); }
    const double* log_weights() const { return log_weights_.data(); }
    int64_t id(int64_t r) const { return ids_[r]; }
    // Of a row, among those of the segment.
    int64_t place(int64_t r) const { return place_ + r; }
    // Where the row of that id is in the tile, -1 where it is not.
    int64_t find(int64_t id) const {
        const int64_t* const end = ids_.data() + count_;
        const int64_t* const found = std::lower_bound(ids_.data(), end, id);
        return found != end && *found == id ? found - ids_.data() : -1;
    }

  private:
    const Problem& problem_;
    int64_t capacity_;
    int64_t count_ = 0;
    int64_t place_ = 0;
    bool fetch_ = false;
    Buffer<const uint8_t*> rows_;
    Buffer<const uint8_t*> ahead_;
    Buffer<const uint8_t*> early_;
    Buffer<int64_t> ids_;
    Buffer<double> norms_;
    Buffer<double> log_weights_;
};

}  // namespace diffgen::cpu::u8
