// What every kernel of a call is handed: the problem, and where its working memory is.
#pragma once

#include <cstdint>

#include "../u8/posterior_rules.h"
#include "moments.h"

namespace diffgen::cuda {

using namespace diffgen::u8;

// Blocks that measure the rows' lengths.
constexpr int kLengthBlocks = 256;
// Passes over the rows, each with columns of its own.
constexpr int64_t kForNearest = 0;
constexpr int64_t kForSums = 1;
constexpr int64_t kPasses = 2;
// Queries whose weighted sums are formed together.
constexpr int kGroup = 16;
// Words of a bit for each row of a segment.
constexpr int kWords = kSegmentRows / 32;

DIFFGEN_HD inline int64_t groups_of(int64_t batch) {
    return (batch + kGroup - 1) / kGroup;
}

// What is known of a query.
struct QueryState {
    Point point;  // its pointers and its corrections are not used
    Query query;  // neither is its anchor, but for these:
    int64_t anchor = -1;
    double anchor_distance = INFINITY;  // squared
    int planes = 0;                     // leading digits that screen
    BoundTerms terms;                   // of products with them and rows less 128
};

// Rows of a segment that are weighted together. They end at these places: of the segment, and of
// the list of its rows that weigh anything.
struct UnitRecord {
    double old;
    double fresh;
    int32_t row_end;
    int32_t list_end;
};

// A query's posterior over a segment, but for its mean.
struct Part {
    State state;
    int32_t units = 0;
    int32_t listed = 0;  // rows that weigh anything
    int32_t digits = 0;  // of the weights, at most
};

// How a part joins what comes before it.
struct Joint {
    double old;
    double fresh;
};

// What the sums over a segment take of a query's part.
struct Weighed {
    int16_t digits = 0;  // of the weights, at most; 0: nothing enters the result
    int16_t listed = 0;  // rows that weigh anything
};

struct NearRow {
    double distance;  // squared
    int64_t id;       // -1: none
};

struct Call {
    Problem problem;
    MomentsOutput output;
    double origin;
    Demands demands;
    int64_t eligible;    // rows
    int64_t segments;    // of all rows
    int64_t wave;        // segments that there is room for
    int64_t first;       // of this wave
    int64_t here;        // segments of this wave
    int64_t stride;      // bytes of a query's digits of one place
    int32_t tile;        // rows of a tile
    int32_t tile_shift;  // their binary logarithm
    int32_t tiles;       // of a segment, at most
    int64_t pass;        // kForNearest or kForSums
    bool few;            // products by the kernel for few queries
    bool few_for_rest;   // the same, of the digits that did not screen
    bool for_rest;       // these products are of the digits that did not screen
    int32_t planes;      // that screen; 0 to choose
    int32_t dense;       // as in Plan, as is `rest`
    int32_t rest;

    // Of the problem:
    int64_t* begins;        // (segments + 1,) first eligible row of each segment
    double* lengths;        // (kLengthBlocks,) largest squared lengths
    QueryState* queries;    // (batch,)
    double* x;              // (batch, features)
    int8_t* digits;         // (kQueryDigits, batch, stride)
    int32_t* columns;       // (kPasses, kQueryDigits batch) those whose products are formed
    int32_t* column_count;  // (kPasses,)
    State* totals;          // (batch,) of the segments so far
    double* total_means;    // (batch, features)
    int32_t* resumes;       // (batch,) segments of the wave before this one are not read
    // Of a wave:
    int32_t* products;      // (kQueryDigits batch, wave, kSegmentRows)
    uint32_t* left;         // (batch, wave, kWords) rows that the screen leaves
    int32_t* left_count;    // (batch, wave)
    int32_t* rest_columns;  // (wave, kQueryDigits batch) as `columns`, of the other digits
    int32_t* rest_count;    // (wave,)
    uint8_t* completed;     // (batch, wave) whether those of a query are among them
    int8_t* weights;        // (batch, wave, kWeightDigits, kSegmentRows) lowest digits first
    uint16_t* lists;        // (batch, wave, kSegmentRows) places of rows that weigh anything
    UnitRecord* units;      // (batch, wave, tiles)
    Part* parts;            // (batch, wave)
    Joint* joints;          // (batch, wave)
    Weighed* weighed;       // (batch, wave)
    int32_t* courses;       // (groups, wave) digits of sums by matrix products, 0 for row by row
    double* means;          // (batch, wave, features)
    NearRow* near;          // (batch, wave)
};

}  // namespace diffgen::cuda
