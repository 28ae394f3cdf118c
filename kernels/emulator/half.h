// Half precision for compilers without CUDA's types. Arithmetic rounds once, to nearest even, as the hardware does.
#pragma once

#include <cstdint>
#include <cstring>

namespace exl {

struct half {
    uint16_t bits;
};
struct alignas(4) half2 {
    half x, y;
};

namespace emulator {

inline float widen(half value) {
    _Float16 number;
    std::memcpy(&number, &value, sizeof number);
    return static_cast<float>(number);
}

inline half narrow(float value) {
    const auto number = static_cast<_Float16>(value);
    half result;
    std::memcpy(&result, &number, sizeof result);
    return result;
}

// One rounding from double: what does not fit 24 bits sticks to the last of them, so that the second step cannot see a
// tie where there is none.
inline half narrow(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    constexpr uint64_t dropped = (uint64_t(1) << 29) - 1;
    bits = (bits & ~dropped) | (bits & dropped ? dropped + 1 : 0);
    std::memcpy(&value, &bits, sizeof bits);
    return narrow(static_cast<float>(value));
}

}  // namespace emulator
}  // namespace exl
