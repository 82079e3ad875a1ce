// What stands around the integer sums: element by element or in a fixed order of lanes, so that
// every instruction set gives the same bits.

#include "../../fixed_math.h"
#include "../unroll.h"
#include "kernels.h"

namespace {
namespace u8_loops {

namespace u8 = diffgen::cpu::u8;

// ---- Queries -----------------------------------------------------------------------------------

// Digits of the features [begin, end) and what they leave, added to `result`.
void split_chain(const double* x, int64_t begin, int64_t end, int64_t features, double unit,
                 int8_t* const* digits, u8::Split* result) {
    constexpr int kDigits = u8::kQueryDigits;
    const double step = 1.0 / unit;
    double lost[kDigits][u8::kLanes] = {};
    double squares[kDigits][u8::kLanes] = {};
    double square[u8::kLanes] = {};
    const int64_t whole = features / u8::kLanes * u8::kLanes;
    for (int64_t k = begin; k < end; k += u8::kLanes) {
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
                const int8_t digit = j > 0 ? u8::take_digit(z[i]) : static_cast<int8_t>(z[i]);
                digits[j][k + i] = digit;
                total += digit;
            }
            result->digit_sums[j] += total;
            power *= 256.0;
        }
    }
    for (int j = 0; j < kDigits; ++j) {
        result->lost[j] += u8::sum_lanes(lost[j]);
        result->squares[j] += u8::sum_lanes(squares[j]);
    }
    result->square += u8::sum_lanes(square);
}

void split(const double* x, int64_t features, double unit, int8_t* const* digits,
           u8::Split* result) {
    *result = {};
    const int64_t all = u8::padded(features);
    for (int64_t begin = 0; begin < all; begin += u8::kChain) {
        const int64_t end = all - begin < u8::kChain ? all : begin + u8::kChain;
        split_chain(x, begin, end, features, unit, digits, result);
    }
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
        out[r] = u8::logit_of(products[r], norms[r], log_weights[r], correction, norm_factor,
                              product_factor);
    }
    return largest_of(out, rows);
}

u8::Screened screen(const int64_t* products, const double* norms, const double* log_weights,
                    int64_t rows, const u8::BoundTerms& terms, double kappa, double constant,
                    double* logits, double* upper) {
    const u8::BoundTerms t = terms;
    for (int64_t r = 0; r < rows; ++r) {
        const u8::Bound bound = u8::bound_of(t, products[r], norms[r]);
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
        const u8::Bound bound = u8::bound_of(t, products[r], norms[r]);
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
    static_assert(u8::kChain % kStep == 0);
    double total = 0.0;
    for (int64_t begin = 0; begin < features; begin += u8::kChain) {
        const int64_t end = features - begin < u8::kChain ? features : begin + u8::kChain;
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
        total += u8::sum_lanes(lane);
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
        for (int j = Digits - 1; j > 0; --j) digits[j][r] = u8::take_digit(z);
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

}  // namespace u8_loops
}  // namespace
