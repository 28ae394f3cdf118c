#include "emulator/matrix.h"

#include "emulator/half.h"

namespace exl::emulator {

namespace {

struct Half {
    using Sum = float;
    static constexpr int per_word = 2;
    static float element(uint32_t word, int i) { return widen(half{static_cast<uint16_t>(word >> 16 * i)}); }
    static float element_b(uint32_t word, int i) { return element(word, i); }
};

struct BFloat16 {
    using Sum = float;
    static constexpr int per_word = 2;
    static float element(uint32_t word, int i) {
        const uint32_t bits = (word >> 16 * i) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
    static float element_b(uint32_t word, int i) { return element(word, i); }
};

template <class A> struct Bytes {
    using Sum = int32_t;
    static constexpr int per_word = 4;
    static int32_t element(uint32_t word, int i) { return static_cast<A>(word >> 8 * i); }
    static int32_t element_b(uint32_t word, int i) { return static_cast<int8_t>(word >> 8 * i); }
};

// c (16, 8) += a (16, k) x b (k, 8) from and to the fragments of 32 lanes; k = 8 words' worth of elements.
template <class Type> void multiply(Deposits operands) {
    using Sum = typename Type::Sum;
    constexpr int per_word = Type::per_word, half_k = 4 * per_word, k = 2 * half_k;
    Sum a[16][k], b[k][8], c[16][8];
    for (int lane = 0; lane < group_lanes; lane++) {
        Operands<Sum> from;
        std::memcpy(&from, operands[lane], sizeof from);
        const int major = lane / 4, minor = lane % 4;
        for (int part = 0; part < 2; part++) {
            for (int i = 0; i < per_word; i++) {
                const int at = part * half_k + minor * per_word + i;
                a[major][at] = Type::element(from.a[2 * part], i);
                a[major + 8][at] = Type::element(from.a[2 * part + 1], i);
                b[at][major] = Type::element_b(from.b[part], i);
            }
            c[major + 8 * part][2 * minor] = from.c[2 * part];
            c[major + 8 * part][2 * minor + 1] = from.c[2 * part + 1];
        }
    }
    for (int row = 0; row < 16; row++)
        for (int at = 0; at < k; at++)
            for (int column = 0; column < 8; column++) c[row][column] += a[row][at] * b[at][column];
    for (int lane = 0; lane < group_lanes; lane++) {
        Operands<Sum> to{};
        for (int i = 0; i < 4; i++) to.c[i] = c[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
        std::memcpy(operands[lane], &to, sizeof to);
    }
}

}  // namespace

void multiply_f16(Deposits operands) { multiply<Half>(operands); }
void multiply_bf16(Deposits operands) { multiply<BFloat16>(operands); }
void multiply_s8(Deposits operands) { multiply<Bytes<int8_t>>(operands); }
void multiply_u8s8(Deposits operands) { multiply<Bytes<uint8_t>>(operands); }

}  // namespace exl::emulator
