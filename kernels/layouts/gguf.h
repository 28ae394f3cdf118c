// GGUF blocks: one packed struct per type, and how a row is cut into codes and the numbers that scale them.
//
// All fields little endian; d, dmin and m are fp16. value = code * scale + offset, see kernels/cpu/group_affine.h for the schemes.
#pragma once

#include <cstdint>
#include <cstring>

namespace exl::layouts {

#pragma pack(push, 1)
struct Q4_0 {
    uint16_t d;
    uint8_t qs[16];
};  // low nibbles j, high nibbles j + 16
struct Q4_1 {
    uint16_t d, m;
    uint8_t qs[16];
};
struct Q5_0 {
    uint16_t d;
    uint8_t qh[4];
    uint8_t qs[16];
};  // bit j of qh = fifth bit of element j
struct Q5_1 {
    uint16_t d, m;
    uint8_t qh[4];
    uint8_t qs[16];
};
struct Q8_0 {
    uint16_t d;
    int8_t qs[32];
};
struct Q2_K {
    uint8_t scales[16];
    uint8_t qs[64];
    uint16_t d, dmin;
};  // scales: low nibble scale, high nibble min
struct Q3_K {
    uint8_t hmask[32];
    uint8_t qs[64];
    uint8_t scales[12];
    uint16_t d;
};
struct Q4_K {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qs[128];
};
struct Q5_K {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t qs[128];
};
struct Q6_K {
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint16_t d;
};
#pragma pack(pop)

static_assert(sizeof(Q4_0) == 18 && sizeof(Q4_1) == 20 && sizeof(Q5_0) == 22 && sizeof(Q5_1) == 24 &&
              sizeof(Q8_0) == 34);
static_assert(sizeof(Q2_K) == 84 && sizeof(Q3_K) == 110 && sizeof(Q4_K) == 144 && sizeof(Q5_K) == 176 &&
              sizeof(Q6_K) == 210);

// A decoded block: unsigned codes in element order, fp16 numbers, small integers per group.
struct Decoded {
    uint8_t codes[256];
    uint16_t d, m;  // m: offset of Q*_1, dmin of the K types
    uint8_t small_scale[16];  // int8 for Q3_K and Q6_K
    uint8_t small_min[16];
};

static inline void low_high_nibbles(const uint8_t* qs, uint8_t* codes) {
    for (int j = 0; j < 16; ++j) {
        codes[j] = qs[j] & 15;
        codes[j + 16] = qs[j] >> 4;
    }
}

static inline void add_fifth_bits(const uint8_t* qh, uint8_t* codes) {
    for (int j = 0; j < 32; ++j) codes[j] = uint8_t(codes[j] | ((qh[j / 8] >> (j % 8)) & 1) << 4);
}

static inline void decode(const Q4_0& b, Decoded& out) {
    out.d = b.d;
    low_high_nibbles(b.qs, out.codes);
}
static inline void decode(const Q4_1& b, Decoded& out) {
    out.d = b.d;
    out.m = b.m;
    low_high_nibbles(b.qs, out.codes);
}
static inline void decode(const Q5_0& b, Decoded& out) {
    out.d = b.d;
    low_high_nibbles(b.qs, out.codes);
    add_fifth_bits(b.qh, out.codes);
}
static inline void decode(const Q5_1& b, Decoded& out) {
    out.d = b.d;
    out.m = b.m;
    low_high_nibbles(b.qs, out.codes);
    add_fifth_bits(b.qh, out.codes);
}
static inline void decode(const Q8_0& b, Decoded& out) {
    out.d = b.d;
    for (int j = 0; j < 32; ++j) out.codes[j] = uint8_t(b.qs[j] + 128);
}

// Two halves of 128 elements; element (s, l) of a half, s < 4, l < 32, is bits 2 s of qs[l].
static inline void two_bit_codes(const uint8_t* qs, uint8_t* codes) {
    for (int half = 0; half < 2; ++half)
        for (int s = 0; s < 4; ++s)
            for (int l = 0; l < 32; ++l) codes[128 * half + 32 * s + l] = (qs[32 * half + l] >> (2 * s)) & 3;
}

static inline void decode(const Q2_K& b, Decoded& out) {
    out.d = b.d;
    out.m = b.dmin;
    two_bit_codes(b.qs, out.codes);
    std::memcpy(out.small_scale, b.scales, 16);  // stays packed: scale and min in one byte
}
static inline void decode(const Q3_K& b, Decoded& out) {
    out.d = b.d;
    two_bit_codes(b.qs, out.codes);
    for (int e = 0; e < 256; ++e) out.codes[e] = uint8_t(out.codes[e] | ((b.hmask[e % 32] >> (e / 32)) & 1) << 2);
    for (int g = 0; g < 16; ++g) {
        const int low = g < 8 ? b.scales[g] & 15 : b.scales[g - 8] >> 4;
        const int high = (b.scales[8 + g % 4] >> (2 * (g / 4))) & 3;
        out.small_scale[g] = uint8_t(int8_t((low | high << 4) - 32));
    }
}

// Eight 6-bit scales and mins in 12 bytes.
static inline void six_bit_pairs(const uint8_t* s, Decoded& out) {
    for (int j = 0; j < 8; ++j) {
        out.small_scale[j] = uint8_t(j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
        out.small_min[j] = uint8_t(j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | (s[j] >> 6) << 4);
    }
}
static inline void nibble_chunks(const uint8_t* qs, uint8_t* codes) {
    for (int chunk = 0; chunk < 4; ++chunk)
        for (int l = 0; l < 32; ++l) {
            codes[64 * chunk + l] = qs[32 * chunk + l] & 15;
            codes[64 * chunk + 32 + l] = qs[32 * chunk + l] >> 4;
        }
}
static inline void decode(const Q4_K& b, Decoded& out) {
    out.d = b.d;
    out.m = b.dmin;
    six_bit_pairs(b.scales, out);
    nibble_chunks(b.qs, out.codes);
}
static inline void decode(const Q5_K& b, Decoded& out) {
    out.d = b.d;
    out.m = b.dmin;
    six_bit_pairs(b.scales, out);
    nibble_chunks(b.qs, out.codes);
    for (int e = 0; e < 256; ++e) out.codes[e] = uint8_t(out.codes[e] | ((b.qh[e % 32] >> (e / 32)) & 1) << 4);
}
static inline void decode(const Q6_K& b, Decoded& out) {
    out.d = b.d;
    for (int half = 0; half < 2; ++half)
        for (int l = 0; l < 32; ++l) {
            const uint8_t *ql = b.ql + 64 * half, high = b.qh[32 * half + l];
            uint8_t* codes = out.codes + 128 * half + l;
            codes[0] = uint8_t((ql[l] & 15) | (high & 3) << 4);
            codes[32] = uint8_t((ql[l + 32] & 15) | ((high >> 2) & 3) << 4);
            codes[64] = uint8_t((ql[l] >> 4) | ((high >> 4) & 3) << 4);
            codes[96] = uint8_t((ql[l + 32] >> 4) | (high >> 6) << 4);
        }
    std::memcpy(out.small_scale, b.scales, 16);
}

}  // namespace exl::layouts
