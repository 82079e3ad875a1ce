// The segments of a problem, and the tile of one that is at hand; see ../../u8/layout.h.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <vector>

#include "../../problem.h"
#include "../../u8/layout.h"
#include "../buffer.h"

namespace diffgen::cpu::u8 {

using namespace diffgen::u8;

// Rows of a set that lie one after another, with what goes with each: the ids ascend, and the rows
// of a segment come together.
struct RowBlock {
    const uint8_t* data;        // (count, features)
    int64_t first;              // id of the first row
    const int64_t* ids;         // (count,), or null where they follow one another
    const double* norms;        // (count,), see Problem
    const double* log_weights;  // (count,) or null
    int64_t count;
    // Where there is no `data`: an open file that has the rows from this byte on.
    int file = -1;
    int64_t offset = 0;
};

// Eligible rows, numbered in ascending order of their ids.
class Segments {
  public:
    // Those of a problem, whose rows, norms and weights are found by id.
    explicit Segments(const Problem& problem)
        : by_id_(true),
          features_(problem.features),
          first_(0),
          ids_(problem.rows),
          data_(static_cast<const uint8_t*>(problem.data)),
          norms_(problem.norms),
          log_weights_(problem.log_weights) {
        divide(problem.rows ? problem.row_count : problem.count);
    }

    // Those of a block.
    Segments(const RowBlock& block, int64_t features)
        : by_id_(false),
          features_(features),
          first_(block.first),
          ids_(block.ids),
          data_(block.data),
          norms_(block.norms),
          log_weights_(block.log_weights),
          file_(block.data == nullptr ? block.file : -1),
          offset_(block.offset) {
        divide(block.count);
    }

    int64_t count() const { return static_cast<int64_t>(begins_.size()) - 1; }
    int64_t begin(int64_t segment) const { return begins_[static_cast<size_t>(segment)]; }
    // Among all segments of the set.
    int64_t number(int64_t segment) const { return id(begin(segment)) / kSegmentRows; }
    int64_t id(int64_t at) const { return ids_ ? ids_[at] : first_ + at; }
    const uint8_t* row(int64_t at) const { return data_ + place(at) * features_; }
    double norm(int64_t at) const { return norms_[place(at)]; }
    double log_weight(int64_t at) const { return log_weights_ ? log_weights_[place(at)] : 0.0; }

    bool in_file() const { return file_ >= 0; }
    // Reads rows of a file, of which nothing is in memory. False where they are not there.
    bool read(int64_t at, int64_t count, uint8_t* rows) const {
        int64_t left = count * features_;
        int64_t from = offset_ + at * features_;
        while (left > 0) {
            const ssize_t got = pread(file_, rows, static_cast<size_t>(left), from);
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0) return false;
            rows += got;
            from += got;
            left -= got;
        }
        return true;
    }

  private:
    int64_t place(int64_t at) const { return by_id_ ? id(at) : at; }

    void divide(int64_t rows) {
        begins_.push_back(0);
        if (ids_ == nullptr) {
            int64_t at = kSegmentRows - first_ % kSegmentRows;
            for (; at < rows; at += kSegmentRows) begins_.push_back(at);
        } else {
            for (int64_t at = 1; at < rows; ++at) {
                if (ids_[at] / kSegmentRows != ids_[at - 1] / kSegmentRows) begins_.push_back(at);
            }
        }
        if (rows > 0) begins_.push_back(rows);
    }

    bool by_id_;
    int64_t features_;
    int64_t first_;
    const int64_t* ids_;
    const uint8_t* data_;
    const double* norms_;
    const double* log_weights_;
    int file_ = -1;
    int64_t offset_ = 0;
    std::vector<int64_t> begins_;
};

class Tile {
  public:
    explicit Tile(int64_t features)
        : features_(features),
          capacity_(tile_rows(features)),
          rows_(capacity_),
          ahead_(capacity_),
          early_(capacity_),
          ids_(capacity_),
          norms_(capacity_),
          log_weights_(capacity_) {}

    int64_t capacity() const { return capacity_; }

    // As many rows of a segment, from eligible row `begin` on, as there is room for. `copies` are
    // these rows where they were read from a file; or null.
    void load(const Segments& segments, int64_t segment, int64_t begin, const uint8_t* copies) {
        const int64_t last = segments.begin(segment + 1);
        const int64_t end = std::min(last, begin + capacity_);
        count_ = end - begin;
        place_ = begin - segments.begin(segment);
        for (int64_t r = 0; r < count_; ++r) {
            ids_[r] = segments.id(begin + r);
            rows_[r] = copies ? copies + r * features_ : segments.row(begin + r);
            ahead_[r] = !copies && end + r < last ? segments.row(end + r) : rows_[r];
            early_[r] = r % 4 ? ahead_[r] : rows_[r];
            norms_[r] = segments.norm(begin + r);
            log_weights_[r] = segments.log_weight(begin + r);
        }
        fetch_ = !copies && end < last;
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
    int64_t features_;
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
