// EXL3: a 16x16 tile of weights is a ring of bits, and a weight is a function of 16 neighbouring bits.
//
//   words   [ 1 | 0 ][ 3 | 2 ][ 5 | 4 ] ...   pairs are little-endian uint32; the stream takes each from bit 31 to bit 0
//   stream  ...bbbbbbbb|kkkk|kkkk|kkkk|...    state i = the 16 bits that end where the symbol of position i ends
//
// rate2 is twice the bits per weight: 2 .. 8, 10, 12, 14, 16. Symbol i ends at bit (i + 1) * rate2 / 2, rounded down, so
// that half rates alternate between two lengths. Bits before the first are the last of the stream.
//
//   position i, lane = i / 8, j = i % 8:   row    (input)  = 2 (lane % 4) + j % 2 + 8 (j / 2 % 2)
//                                          column (output) = lane / 4 + 8 (j / 4)
//
// which is the order of mma.m16n8k16's B fragments. Oracle: exllama/formats/trellis.py.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define EXL_LAYOUT static __host__ __device__ inline
#else
#define EXL_LAYOUT static inline
#endif

namespace exl::layouts {

template <int rate2> struct Exl3Tile {
    uint16_t words[8 * rate2];
};
static_assert(sizeof(Exl3Tile<2>) == 32 && sizeof(Exl3Tile<5>) == 80 && sizeof(Exl3Tile<8>) == 128 &&
              sizeof(Exl3Tile<16>) == 256);

enum class Codebook : int32_t { three_inst, mcg, mul1 };

// mul1 is affine in the sum of the product's bytes: fp16(mul1_scale * (sum - mul1_zero) + mul1_rest).
constexpr float mul1_scale = 0.00676727294921875f;
constexpr int mul1_zero = 510;
constexpr float mul1_rest = (1024 + mul1_zero) * mul1_scale - 10.3828125f;

EXL_LAYOUT int exl3_end(int rate2, int i) { return (i + 1) * rate2 / 2; }
EXL_LAYOUT int exl3_row(int i) { return 2 * (i / 8 % 4) + i % 2 + 8 * (i / 2 % 2); }
EXL_LAYOUT int exl3_column(int i) { return i / 32 + 8 * (i / 4 % 2); }

// The state of position i, from a function that gives word t of the stream in order.
template <typename Word> EXL_LAYOUT uint32_t exl3_state(int rate2, int i, Word word) {
    const int end = exl3_end(rate2, i), last = (end - 1) / 16;
    const uint32_t pair = uint32_t(word((last + 8 * rate2 - 1) % (8 * rate2))) << 16 | word(last);
    return pair >> (16 * (last + 1) - end) & 0xffff;
}

EXL_LAYOUT uint32_t exl3_product(Codebook codebook, uint32_t state) {
    if (codebook == Codebook::mul1) return state * 0x83DCD12Du;
    return codebook == Codebook::mcg ? state * 0xCBAC1FEDu : state * 89226354u + 64248484u;
}

// The nearest number with 11 significant bits, ties to even: fp16 rounding within fp16's normal range.
EXL_LAYOUT float exl3_round(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits = (bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu;
    std::memcpy(&x, &bits, 4);
    return x;
}

// An fp16 of the codebooks mcg and 3INST: exponents 12 to 15 only.
EXL_LAYOUT float exl3_half(uint32_t half) {
    const uint32_t bits = (half & 0x8000) << 16 | ((half & 0x7fff) + (112u << 10)) << 13;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// The weight of a state, exact. All sums before the one rounding are exact in float.
EXL_LAYOUT float exl3_value(Codebook codebook, uint32_t state) {
    uint32_t x = exl3_product(codebook, state);
    if (codebook == Codebook::mul1) {
        const uint32_t sum = (x & 255) + (x >> 8 & 255) + (x >> 16 & 255) + (x >> 24);
        return exl3_round(float(1024 + sum) * mul1_scale - 10.3828125f);
    }
    x = (x & 0x8fff8fffu) ^ 0x3b603b60u;
    return exl3_round(exl3_half(x & 0xffff) + exl3_half(x >> 16));
}

// One tile to 16 x 16 weights, row by row.
template <int rate2> EXL_LAYOUT void decode(const Exl3Tile<rate2>& tile, Codebook codebook, float* weights) {
    for (int i = 0; i < 256; ++i) {
        const uint32_t state = exl3_state(rate2, i, [&](int t) { return tile.words[t ^ 1]; });
        weights[16 * exl3_row(i) + exl3_column(i)] = exl3_value(codebook, state);
    }
}

// 256 states that follow each other around the ring to the tile that holds them.
template <int rate2> EXL_LAYOUT void encode(const uint16_t* states, Exl3Tile<rate2>& tile) {
    for (int t = 0; t < 8 * rate2; ++t) tile.words[t] = 0;
    for (int i = 0; i < 256; ++i) {
        const int begin = i ? exl3_end(rate2, i - 1) : 0, end = exl3_end(rate2, i);
        for (int bit = begin; bit < end; ++bit) {
            const uint32_t one = states[i] >> (end - 1 - bit) & 1;
            tile.words[(bit / 16) ^ 1] |= uint16_t(one << (15 - bit % 16));
        }
    }
}

}  // namespace exl::layouts
