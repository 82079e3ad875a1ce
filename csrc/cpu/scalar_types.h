// Conversions of one stored value to double, exact for every storage type.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

inline float float_from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

inline float widen(Half half) {
    // The exponent is moved by multiplying with 2^112, which also normalises subnormals.
    const uint32_t sign = static_cast<uint32_t>(half.bits & 0x8000u) << 16;
    const uint32_t magnitude = static_cast<uint32_t>(half.bits & 0x7fffu) << 13;
    const float scaled = float_from_bits(magnitude) * float_from_bits(0x77800000u);
    const bool special = (half.bits & 0x7c00u) == 0x7c00u;
    uint32_t bits;
    std::memcpy(&bits, &scaled, sizeof(bits));
    return float_from_bits(sign | (special ? (magnitude | 0x7f800000u) : bits));
}

inline float widen(BFloat16 value) {
    return float_from_bits(static_cast<uint32_t>(value.bits) << 16);
}

inline double stored_value(uint8_t value) {
    return static_cast<double>(value) - 128.0;
}
inline double stored_value(Half value) {
    return static_cast<double>(widen(value));
}
inline double stored_value(BFloat16 value) {
    return static_cast<double>(widen(value));
}
inline double stored_value(float value) {
    return static_cast<double>(value);
}
inline double stored_value(double value) {
    return value;
}

}  // namespace
