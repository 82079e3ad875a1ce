// The canonical order of 8-bit rows, and how numbers become digits: what the bits of a result
// depend on, on every machine.
//
// A segment is the eligible rows among 1,024 consecutive ids; a tile is a share of a segment that
// fits a processor's second-level cache. Tiles are merged into their segment from left to right,
// segments into the result from left to right. Derived in docs/numerics-integers.md.
#pragma once

#include <cstdint>

#include "../host_device.h"

namespace diffgen::u8 {

// Balanced 8-bit digits of a query in fixed point, and the most of a weight.
constexpr int kQueryDigits = 5;
constexpr int kWeightDigits = 5;
// Three digits resolve what the densest sums need, five what float64 can do.
constexpr int kFewestDigits = 3;
// A leading digit of +-127 leaves room for the carry out of the others.
constexpr double kTopDigit = 127.0;
// Columns of digits and sums of features are padded with zeros to a multiple of this.
constexpr int64_t kPadding = 64;
// Weights of the log-sum-exp are integers in units of 2^-46.
constexpr double kMassUnit = 0x1p46;

// Lanes of sums over features, and features whose lanes are added up before the next ones.
constexpr int kLanes = 8;
constexpr int64_t kChain = 512;
// Lanes of sums over the rows of a unit: a row's is its place in the segment.
constexpr int kRowLanes = 32;

constexpr int64_t kSegmentRows = 1024;
constexpr int64_t kTileBytes = 400 * 1024;
constexpr int64_t kFewestTileRows = 4;

namespace {

DIFFGEN_HD inline int64_t padded(int64_t features) {
    return (features + kPadding - 1) / kPadding * kPadding;
}

// Rows of a tile: a power of two, by the number of features alone.
DIFFGEN_HD inline int64_t tile_rows(int64_t features) {
    int64_t rows = kSegmentRows;
    while (rows > kFewestTileRows && rows * features > kTileBytes) rows /= 2;
    return rows;
}

DIFFGEN_HD inline double sum_lanes(const double (&lane)[kLanes]) {
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) +
           ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

// The lowest balanced digit of z, which is left without it.
DIFFGEN_HD inline int8_t take_digit(int64_t& z) {
    const int8_t digit = static_cast<int8_t>(z & 0xff);
    z = (z - digit) >> 8;
    return digit;
}

}  // namespace

}  // namespace diffgen::u8
