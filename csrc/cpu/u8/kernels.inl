// The loops over 8-bit rows, each once, over the Ints of one instruction set. Included by
// kernels_<isa>.cpp after its ints header. As in ../kernels.inl, nothing may leave a weak symbol.

#include "fixed_math.h"
#include "kernels.h"

namespace {
namespace u8_loops {

namespace u8 = diffgen::cpu::u8;

#ifndef DIFFGEN_UNROLL
#define DIFFGEN_UNROLL _Pragma("GCC unroll 16")
#endif

// A number as a type, for the loops that try several sizes.
template <int N>
struct Count {
    static constexpr int value = N;
};

// Features of a block: a tile of columns stays in the first-level cache, and no sum of as many
// products of bytes overflows.
constexpr int64_t kFeatureBlock = 4096;

// ---- Products ----------------------------------------------------------------------------------

// out[c][r] += over [begin, whole) and `rest` features more, less than a vector; the old value
// counts as zero where it is `fresh`.
template <int Rows, int Columns>
void products_tile(const uint8_t* const* rows, const int8_t* const* columns, int64_t begin,
                   int64_t whole, int64_t rest, const uint8_t* const* ahead, bool fresh,
                   int64_t* const* out) {
    using V = Ints::V;
    V sum[Rows][Columns];
    DIFFGEN_UNROLL
    for (int r = 0; r < Rows; ++r) {
        DIFFGEN_UNROLL
        for (int c = 0; c < Columns; ++c) sum[r][c] = Ints::zero();
    }
    for (int64_t k = begin; k < whole; k += Ints::kBytes) {
        V row[Rows];
        DIFFGEN_UNROLL
        for (int r = 0; r < Rows; ++r) {
            row[r] = Ints::row(rows[r] + k);
            if (ahead) __builtin_prefetch(ahead[r] + k, 0, 2);
        }
        DIFFGEN_UNROLL
        for (int c = 0; c < Columns; ++c) {
            V column = Ints::column(columns[c] + k);
            Ints::pin(column);
            DIFFGEN_UNROLL
            for (int r = 0; r < Rows; ++r) {
                sum[r][c] = Ints::multiply_add(sum[r][c], row[r], column);
            }
        }
    }
    if (rest > 0) {
        DIFFGEN_UNROLL
        for (int r = 0; r < Rows; ++r) {
            const V row = Ints::row_end(rows[r] + whole, rest);
            DIFFGEN_UNROLL
            for (int c = 0; c < Columns; ++c) {
                sum[r][c] = Ints::multiply_add(sum[r][c], row, Ints::column(columns[c] + whole));
            }
        }
    }
    DIFFGEN_UNROLL
    for (int c = 0; c < Columns; ++c) {
        if constexpr (Rows % 4 == 0) {
            DIFFGEN_UNROLL
            for (int r = 0; r < Rows; r += 4) {
                Ints::add_sums(sum[r][c], sum[r + 1][c], sum[r + 2][c], sum[r + 3][c], fresh,
                               out[c] + r);
            }
        } else {
            DIFFGEN_UNROLL
            for (int r = 0; r < Rows; ++r) {
                out[c][r] = (fresh ? 0 : out[c][r]) + Ints::sum(sum[r][c]);
            }
        }
    }
}

template <int Columns>
void products_rows(const uint8_t* const* rows, int64_t row_count, const int8_t* const* columns,
                   int64_t begin, int64_t whole, int64_t rest, const uint8_t* const* ahead,
                   bool fresh, int64_t* const* out) {
    constexpr int kRows = Ints::rows_beside(Columns);
    int64_t* here[Columns];
    for (int c = 0; c < Columns; ++c) here[c] = out[c];
    int64_t r = 0;
    const auto pass = [&](auto count, const uint8_t* const* next) {
        constexpr int kCount = decltype(count)::value;
        for (; r + kCount <= row_count; r += kCount) {
            products_tile<kCount, Columns>(rows + r, columns, begin, whole, rest,
                                           next ? next + r : nullptr, fresh, here);
            for (int c = 0; c < Columns; ++c) here[c] += kCount;
        }
    };
    pass(Count<kRows>(), ahead);
    if constexpr (kRows > 4) pass(Count<4>(), nullptr);
    if constexpr (kRows > 2) pass(Count<2>(), nullptr);
    pass(Count<1>(), nullptr);
}

void products(const uint8_t* const* rows, int64_t row_count, const int8_t* const* columns,
              int64_t column_count, int64_t features, const uint8_t* const* ahead,
              int64_t* const* out) {
    for (int64_t begin = 0; begin < features; begin += kFeatureBlock) {
        const int64_t left = features - begin;
        const int64_t length = left < kFeatureBlock ? left : kFeatureBlock;
        const int64_t rest = length % Ints::kBytes;
        const int64_t whole = begin + length - rest;
        int64_t c = 0;
        // Each of the column tiles would fetch the same rows: the first one does.
        const uint8_t* const* next = ahead;
        const auto pass = [&](auto count) {
            constexpr int kCount = decltype(count)::value;
            for (; c + kCount <= column_count; c += kCount) {
                products_rows<kCount>(rows, row_count, columns + c, begin, whole, rest, next,
                                      begin == 0, out + c);
                next = nullptr;
            }
        };
        if constexpr (Ints::kSumColumns >= 6) {
            pass(Count<6>());
            pass(Count<4>());
        }
        pass(Count<3>());
        pass(Count<2>());
        pass(Count<1>());
    }
}

// ---- Weighted sums -----------------------------------------------------------------------------

int64_t interleaved_bytes(int64_t row_count, int64_t features) {
    const int64_t steps = (row_count + Ints::kRowsPerStep - 1) / Ints::kRowsPerStep;
    return steps * (u8::padded(features) / Ints::kStrip) * Ints::kVectors *
           static_cast<int64_t>(sizeof(Ints::V));
}

// One step of whole strips: kRowsPerStep rows from feature k on, zeros for rows that are not there.
inline void step_of(const uint8_t* const* rows, int64_t row_count, int64_t first, int64_t k,
                    Ints::V (&step)[Ints::kVectors]) {
    static constexpr uint8_t kNothing[Ints::kStrip] = {};
    const uint8_t* here[Ints::kRowsPerStep];
    DIFFGEN_UNROLL
    for (int i = 0; i < Ints::kRowsPerStep; ++i) {
        here[i] = first + i < row_count ? rows[first + i] + k : kNothing;
    }
    Ints::interleave(here, step);
}

// The same of a strip of which only so many features are there.
void end_step_of(const uint8_t* const* rows, int64_t row_count, int64_t first, int64_t k,
                 int64_t inside, Ints::V (&step)[Ints::kVectors]) {
    uint8_t ends[Ints::kRowsPerStep][Ints::kStrip] = {};
    const uint8_t* here[Ints::kRowsPerStep];
    for (int i = 0; i < Ints::kRowsPerStep; ++i) {
        if (first + i < row_count) {
            for (int64_t j = 0; j < inside; ++j) ends[i][j] = rows[first + i][k + j];
        }
        here[i] = ends[i];
    }
    Ints::interleave(here, step);
}

// Laid out strip by strip of features, all steps of a strip together; read row by row.
void interleave(const uint8_t* const* rows, int64_t row_count, int64_t begin, int64_t end,
                void* interleaved) {
    constexpr int64_t kStepBytes = Ints::kVectors * static_cast<int64_t>(sizeof(Ints::V));
    const int64_t steps = (row_count + Ints::kRowsPerStep - 1) / Ints::kRowsPerStep;
    const int64_t last = begin + u8::padded(end - begin);
    for (int64_t s = 0; s < steps; ++s) {
        char* out = static_cast<char*>(interleaved) + s * kStepBytes;
        for (int64_t k = begin; k < last; k += Ints::kStrip, out += steps * kStepBytes) {
            Ints::V step[Ints::kVectors];
            if (k + Ints::kStrip <= end) {
                step_of(rows, row_count, s * Ints::kRowsPerStep, k, step);
            } else {
                end_step_of(rows, row_count, s * Ints::kRowsPerStep, k, end - k, step);
            }
            DIFFGEN_UNROLL
            for (int v = 0; v < Ints::kVectors; ++v) {
                Ints::store(out + v * sizeof(Ints::V), step[v]);
            }
        }
    }
}

template <int Columns>
inline void add_step(const Ints::V (&step)[Ints::kVectors], const int8_t* const* digits, int64_t r,
                     Ints::V (&sum)[Columns][Ints::kVectors]) {
    DIFFGEN_UNROLL
    for (int c = 0; c < Columns; ++c) {
        Ints::V weight = Ints::weights(digits[c] + r);
        Ints::pin(weight);
        DIFFGEN_UNROLL
        for (int v = 0; v < Ints::kVectors; ++v) {
            sum[c][v] = Ints::multiply_add(sum[c][v], step[v], weight);
        }
    }
}

template <int Columns>
void weighted_rows_some(const uint8_t* const* rows, int64_t row_count, int64_t begin, int64_t end,
                        const int8_t* const* digits, const uint8_t* const* ahead,
                        int32_t* const* sums) {
    constexpr int kVectors = Ints::kVectors;
    const int64_t whole = row_count - row_count % Ints::kRowsPerStep;
    for (int64_t k = begin; k < begin + u8::padded(end - begin); k += Ints::kStrip) {
        Ints::V sum[Columns][kVectors];
        DIFFGEN_UNROLL
        for (int c = 0; c < Columns; ++c) {
            DIFFGEN_UNROLL
            for (int v = 0; v < kVectors; ++v) sum[c][v] = Ints::zero();
        }
        int64_t r = 0;
        Ints::V step[kVectors];
        if (k + Ints::kStrip <= end) {
            for (; r < whole; r += Ints::kRowsPerStep) {
                if (ahead) __builtin_prefetch(ahead[r] + k, 0, 2);
                step_of(rows, whole, r, k, step);
                add_step<Columns>(step, digits, r, sum);
            }
            if (r < row_count) {
                step_of(rows, row_count, r, k, step);
                add_step<Columns>(step, digits, r, sum);
            }
        } else {
            for (; r < row_count; r += Ints::kRowsPerStep) {
                end_step_of(rows, row_count, r, k, end - k, step);
                add_step<Columns>(step, digits, r, sum);
            }
        }
        DIFFGEN_UNROLL
        for (int c = 0; c < Columns; ++c) Ints::store_strip(sum[c], sums[c] + (k - begin));
    }
}

void weighted_rows(const uint8_t* const* rows, int64_t row_count, int64_t begin, int64_t end,
                   const int8_t* const* digits, int64_t column_count, const uint8_t* const* ahead,
                   int32_t* const* sums) {
    int64_t c = 0;
    const auto pass = [&](auto count) {
        constexpr int kCount = decltype(count)::value;
        for (; c + kCount <= column_count; c += kCount) {
            weighted_rows_some<kCount>(rows, row_count, begin, end, digits + c, ahead, sums + c);
        }
    };
    if constexpr (Ints::kSumColumns >= 6) {
        pass(Count<5>());
        pass(Count<4>());
    }
    pass(Count<3>());
    pass(Count<2>());
    pass(Count<1>());
}

template <int Columns>
void weighted_strip(const char* interleaved, int64_t steps, const int8_t* const* digits,
                    int64_t feature, int32_t* const* sums) {
    using V = Ints::V;
    constexpr int kVectors = Ints::kVectors;
    V sum[Columns][kVectors];
    DIFFGEN_UNROLL
    for (int c = 0; c < Columns; ++c) {
        DIFFGEN_UNROLL
        for (int v = 0; v < kVectors; ++v) sum[c][v] = Ints::zero();
    }
    for (int64_t s = 0; s < steps; ++s) {
        V data[kVectors];
        DIFFGEN_UNROLL
        for (int v = 0; v < kVectors; ++v) {
            data[v] = Ints::load(interleaved);
            interleaved += sizeof(V);
        }
        add_step<Columns>(data, digits, s * Ints::kRowsPerStep, sum);
    }
    DIFFGEN_UNROLL
    for (int c = 0; c < Columns; ++c) Ints::store_strip(sum[c], sums[c] + feature);
}

void weighted_sums(const void* interleaved, int64_t row_count, int64_t features,
                   const int8_t* const* digits, int64_t column_count, int32_t* const* sums) {
    const int64_t steps = (row_count + Ints::kRowsPerStep - 1) / Ints::kRowsPerStep;
    const char* strip = static_cast<const char*>(interleaved);
    for (int64_t k = 0; k < u8::padded(features); k += Ints::kStrip) {
        int64_t c = 0;
        const auto pass = [&](auto count) {
            constexpr int kCount = decltype(count)::value;
            for (; c + kCount <= column_count; c += kCount) {
                weighted_strip<kCount>(strip, steps, digits + c, k, sums + c);
            }
        };
        if constexpr (Ints::kSumColumns >= 6) {
            pass(Count<6>());
            pass(Count<5>());
            pass(Count<4>());
        }
        pass(Count<3>());
        pass(Count<2>());
        pass(Count<1>());
        strip += steps * Ints::kVectors * static_cast<int64_t>(sizeof(Ints::V));
    }
}

// ---- Queries -----------------------------------------------------------------------------------

// The lowest balanced digit of z, which is left without it.
inline int8_t take_digit(int64_t& z) {
    const int8_t digit = static_cast<int8_t>(z & 0xff);
    z = (z - digit) >> 8;
    return digit;
}

inline double sum_lanes(const double (&lane)[u8::kLanes]) {
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) +
           ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

void split(const double* x, int64_t features, double unit, int8_t* const* digits,
           u8::Split* result) {
    constexpr int kDigits = u8::kQueryDigits;
    const double step = 1.0 / unit;
    double lost[kDigits][u8::kLanes] = {};
    double squares[kDigits][u8::kLanes] = {};
    double square[u8::kLanes] = {};
    for (int j = 0; j < kDigits; ++j) result->digit_sums[j] = 0;
    const int64_t whole = features / u8::kLanes * u8::kLanes;
    for (int64_t k = 0; k < u8::padded(features); k += u8::kLanes) {
        double here[u8::kLanes];
        int64_t z[u8::kLanes];
        for (int i = 0; i < u8::kLanes; ++i) here[i] = k < whole ? x[k + i] : 0.0;
        if (k == whole) {
            for (int i = 0; i < u8::kLanes; ++i) here[i] = k + i < features ? x[k + i] : 0.0;
        }
        for (int i = 0; i < u8::kLanes; ++i) {
            z[i] = fixed_round(here[i] * unit);
            square[i] += here[i] * here[i];
        }
        double power = step;
        for (int j = kDigits - 1; j >= 0; --j) {
            int64_t total = 0;
            for (int i = 0; i < u8::kLanes; ++i) {
                const double kept = static_cast<double>(z[i]) * power;
                const double gap = here[i] - kept;
                lost[j][i] += gap * gap;
                squares[j][i] += kept * kept;
                const int8_t digit = j > 0 ? take_digit(z[i]) : static_cast<int8_t>(z[i]);
                digits[j][k + i] = digit;
                total += digit;
            }
            result->digit_sums[j] += total;
            power *= 256.0;
        }
    }
    for (int j = 0; j < kDigits; ++j) {
        result->lost[j] = sum_lanes(lost[j]);
        result->squares[j] = sum_lanes(squares[j]);
    }
    result->square = sum_lanes(square);
}

// ---- Logits ------------------------------------------------------------------------------------

void combine(const int64_t* const* planes, int count, int64_t rows, int64_t* products) {
    for (int64_t r = 0; r < rows; ++r) products[r] = planes[0][r];
    for (int j = 1; j < count; ++j) {
        const int64_t* const plane = planes[j];
        for (int64_t r = 0; r < rows; ++r) products[r] = products[r] * 256 + plane[r];
    }
}

double largest_of(const double* values, int64_t count) {
    double largest[u8::kLanes];
    for (int i = 0; i < u8::kLanes; ++i) largest[i] = -__builtin_inf();
    int64_t r = 0;
    for (; r + u8::kLanes <= count; r += u8::kLanes) {
        for (int i = 0; i < u8::kLanes; ++i) {
            largest[i] = values[r + i] > largest[i] ? values[r + i] : largest[i];
        }
    }
    for (; r < count; ++r) largest[0] = values[r] > largest[0] ? values[r] : largest[0];
    double best = largest[0];
    for (int i = 1; i < u8::kLanes; ++i) best = largest[i] > best ? largest[i] : best;
    return best;
}

double logits(const int64_t* products, const double* norms, const double* log_weights, int64_t rows,
              int64_t correction, double norm_factor, double product_factor, double* out) {
    for (int64_t r = 0; r < rows; ++r) {
        const double product = static_cast<double>(products[r] - correction);
        out[r] = log_weights[r] - (norm_factor * norms[r] - product_factor * product);
    }
    return largest_of(out, rows);
}

struct Bound {
    double distance;
    double near;
};

inline Bound bound_of(const u8::BoundTerms& t, int64_t product, double norm) {
    const double distance = (t.square + t.norm_factor * norm) -
                            t.product_factor * static_cast<double>(product - t.correction);
    double least = distance - t.rounding;
    least = least < 0.0 ? 0.0 : least;
    double length = __builtin_sqrt(least) - t.lost;
    length = length < 0.0 ? 0.0 : length;
    return {distance, length * length};
}

u8::Screened screen(const int64_t* products, const double* norms, const double* log_weights,
                    int64_t rows, const u8::BoundTerms& terms, double kappa, double constant,
                    double* logits, double* upper) {
    const u8::BoundTerms t = terms;
    for (int64_t r = 0; r < rows; ++r) {
        const Bound bound = bound_of(t, products[r], norms[r]);
        const double base = log_weights[r] + constant;
        logits[r] = base - kappa * bound.distance;
        upper[r] = base - kappa * bound.near;
    }
    return {largest_of(logits, rows), largest_of(upper, rows)};
}

void bounds(const int64_t* products, const double* norms, int64_t rows, const u8::BoundTerms& terms,
            double* distances, double* near) {
    const u8::BoundTerms t = terms;
    for (int64_t r = 0; r < rows; ++r) {
        const Bound bound = bound_of(t, products[r], norms[r]);
        distances[r] = bound.distance;
        near[r] = bound.near;
    }
}

// Sum over the features of term(k), in four sums a lane, short ones, then a total: where all
// roundings go one way, their number counts.
template <typename Term>
inline double sum_of(int64_t features, Term term) {
    constexpr int kParts = 4;
    constexpr int64_t kStep = kParts * u8::kLanes;
    constexpr int64_t kChain = 16 * kStep;
    double total = 0.0;
    for (int64_t begin = 0; begin < features; begin += kChain) {
        const int64_t end = features - begin < kChain ? features : begin + kChain;
        double sum[kStep] = {};
        int64_t k = begin;
        for (; k + kStep <= end; k += kStep) {
            DIFFGEN_UNROLL
            for (int i = 0; i < kStep; ++i) sum[i] += term(k + i);
        }
        for (int i = 0; k < end; ++k, ++i) sum[i] += term(k);
        double lane[u8::kLanes];
        for (int i = 0; i < u8::kLanes; ++i) {
            lane[i] = (sum[i] + sum[8 + i]) + (sum[16 + i] + sum[24 + i]);
        }
        total += sum_lanes(lane);
    }
    return total;
}

double distance(const uint8_t* row, const double* x, double scale, int64_t features) {
    return sum_of(features, [=](int64_t k) {
        const double gap = x[k] - scale * (static_cast<double>(row[k]) - 128.0);
        return gap * gap;
    });
}

double excess(const uint8_t* row, const uint8_t* anchor, const double* x, double scale,
              int64_t features) {
    return sum_of(features, [=](int64_t k) {
        const int32_t apart = int32_t{anchor[k]} - int32_t{row[k]};
        const int32_t both = int32_t{anchor[k]} + int32_t{row[k]} - 256;
        const double far = 2.0 * x[k] - scale * static_cast<double>(both);
        return (scale * static_cast<double>(apart)) * far;
    });
}

// ---- Weights -----------------------------------------------------------------------------------

int64_t weigh(const double* logits, int64_t rows, double reference, double cutoff,
              double* weights) {
    int64_t total = 0;
    for (int64_t r = 0; r < rows; ++r) {
        const double weight = fixed_exp(logits[r] - reference);
        weights[r] = logits[r] < cutoff ? 0.0 : weight;
    }
    for (int64_t r = 0; r < rows; ++r) total += fixed_round(weights[r] * u8::kMassUnit);
    return total;
}

template <int Digits>
int64_t some_digits(const double* weights, int64_t rows, int8_t* const* digits) {
    constexpr double kUnit = u8::kTopDigit * (Digits == 3 ? 0x1p16 : Digits == 4 ? 0x1p24 : 0x1p32);
    int64_t total = 0;
    for (int64_t r = 0; r < rows; ++r) {
        int64_t z = fixed_round(weights[r] * kUnit);
        total += z;
        for (int j = Digits - 1; j > 0; --j) digits[j][r] = take_digit(z);
        digits[0][r] = static_cast<int8_t>(z);
    }
    for (int64_t r = rows; r % 4 != 0; ++r) {
        for (int j = 0; j < Digits; ++j) digits[j][r] = 0;
    }
    return total;
}

int64_t weight_digits(const double* weights, int64_t rows, int count, int8_t* const* digits) {
    if (count == 3) return some_digits<3>(weights, rows, digits);
    if (count == 4) return some_digits<4>(weights, rows, digits);
    return some_digits<5>(weights, rows, digits);
}

// Sums of that many rows in two neighbouring places, put together, are within an int32.
constexpr int64_t kNarrowRows = 256;

// sum_j 256^(Digits - 1 - j) sums[j][k] - centre. Narrow, every step is exact in float64.
template <int Digits, bool Narrow>
inline double whole_sum(const int32_t* const* sums, int64_t k, int64_t centre) {
    if constexpr (Narrow && Digits <= 4) {
        const int32_t high = sums[0][k] * 256 + sums[1][k];
        const int32_t low = Digits == 4 ? sums[2][k] * 256 + sums[Digits - 1][k] : sums[2][k];
        const double shifted = static_cast<double>(high) * (Digits == 4 ? 65536.0 : 256.0);
        return (shifted + static_cast<double>(low)) - static_cast<double>(centre);
    } else {
        int64_t whole = sums[0][k];
        for (int j = 1; j < Digits; ++j) whole = whole * 256 + sums[j][k];
        return static_cast<double>(whole - centre);
    }
}

template <int Digits, bool Narrow>
void fold_digits(const int32_t* const* sums, int64_t features, int64_t centre, double old,
                 double fresh, double* state) {
    if (old == 0.0) {
        for (int64_t k = 0; k < features; ++k) {
            state[k] = whole_sum<Digits, Narrow>(sums, k, centre) * fresh;
        }
    } else {
        for (int64_t k = 0; k < features; ++k) {
            state[k] = state[k] * old + whole_sum<Digits, Narrow>(sums, k, centre) * fresh;
        }
    }
}

template <bool Narrow>
void fold_some(const int32_t* const* sums, int count, int64_t features, int64_t centre, double old,
               double fresh, double* state) {
    if (count == 3) return fold_digits<3, Narrow>(sums, features, centre, old, fresh, state);
    if (count == 4) return fold_digits<4, Narrow>(sums, features, centre, old, fresh, state);
    return fold_digits<5, Narrow>(sums, features, centre, old, fresh, state);
}

void fold(const int32_t* const* sums, int count, int64_t row_count, int64_t features,
          int64_t centre, double old, double fresh, double* state) {
    if (row_count <= kNarrowRows) {
        fold_some<true>(sums, count, features, centre, old, fresh, state);
    } else {
        fold_some<false>(sums, count, features, centre, old, fresh, state);
    }
}

void merge(const double* other, int64_t features, double old, double fresh, double* state) {
    for (int64_t k = 0; k < features; ++k) state[k] = old * state[k] + fresh * other[k];
}

// ---- The machine's ceiling ---------------------------------------------------------------------

int64_t spin(int64_t iterations) {
    constexpr int kParts = 12;
    Ints::V sum[kParts];
    DIFFGEN_UNROLL
    for (int p = 0; p < kParts; ++p) sum[p] = Ints::zero();
    const int8_t bytes[64] = {1};
    Ints::V factor = Ints::column(bytes);
    for (int64_t i = 0; i < iterations; ++i) {
        Ints::pin(factor);
        DIFFGEN_UNROLL
        for (int p = 0; p < kParts; ++p) sum[p] = Ints::multiply_add(sum[p], factor, factor);
    }
    int64_t total = 0;
    for (int p = 0; p < kParts; ++p) total += Ints::sum(sum[p]);
    // The sum is used, so that the loop stays: it adds nothing to the count.
    return total != 1 ? kParts * iterations * Ints::kBytes : 0;
}

// ---- The table ---------------------------------------------------------------------------------

constexpr u8::Kernels make_kernels() {
    return {products,      interleaved_bytes,
            interleave,    weighted_sums,
            weighted_rows, split,
            combine,       logits,
            bounds,        screen,
            distance,      excess,
            weigh,         weight_digits,
            fold,          merge,
            spin};
}

}  // namespace u8_loops
}  // namespace
