// GroupAffine weights (N, K) as GPUs read them: mma.m16n8k16 A fragments, weights on the side of 16, tokens on that of 8.
//
//     matrix  = ceil(N / 16) tiles of 16 rows; missing rows are zeros
//     tile    = records of 256 columns; the last one ends after the last step that holds columns (K is padded to 64)
//     record  = [ super scales ][ step ][ step ][ step ][ step ]
//     step    = [ scales of 16 rows x 64 columns ][ codes: 32 lanes x 32 codes ]
//
// Lane 4 g + t of a step holds rows g and g + 8. Product s = 0..3 of the step covers columns 16 s .. 16 s + 15, of which
// the lane has 16 s + 4 t .. + 3 (a permutation of k that activations follow, so that a lane reads them as 8 bytes):
//
//     pair 4 s + r  =  row g + 8 (r % 2), columns 16 s + 4 t + 2 (r / 2) + {0, 1}        r = register of the fragment
//
// The 16 pairs of a lane lie in `bits` words, first column in the lower half. A half holds codes of several pairs side by
// side, those of row g (even pairs) and of row g + 8 (odd pairs) in couples, so that after one shift two masks yield two
// pairs: the odd one 2^bits times too large, which the end of the sum takes back (8 and 6 bits do not fit that way).
//
//     bits  couples a half  single fields               left over
//     2     4: pairs 0..15  -                           -
//     3     2: pairs 0..11  pair 12 + i in word i       pair 15: bit i = top bit of word i
//     4     2: pairs 0..15  -                           -
//     5     1: pairs 0..9   pair 10 + i in word i       pair 15: bit i = top bit of word i
//     6     1: pairs 0..11  -                           pair 12 + i: low 4 bits = top of word i, high 2 bits = part i % 2
//                                                       of the top of word 4 + i / 2
//     8     1: pairs 0..15  -                           -
//
//     4 bits, word s:  bit 31          16 15           0
//                      [ p3 p2 p1 p0 ] [ p3 p2 p1 p0 ]       p0 = pair 4 s, upper half: the second column
//
// Words stand so that lanes load 16, then 8, then 4 bytes at a time: [lane][4 words] .. [lane][2 words] [lane][1 word].
//
//     scheme          per step, for each g                                   super scales, for each g
//     symmetric       2 x (s[g], s[g+8]) fp16                                -
//     affine          2 x (s[g], s[g+8]), 2 x (o[g], o[g+8]) fp16            -
//     super32         8 fields of 6 bits: 4 scales, 4 mins                   d[g], d[g+8], dmin[g], dmin[g+8] fp16
//     super16         4 x (byte of g, byte of g+8) = min << 4 | scale        d[g], d[g+8], dmin[g], dmin[g+8] fp16
//     super16_signed  3 bits: 8 fields of 6 bits; else 8 bytes; + bias       d[g], d[g+8] fp16
//
// Fields i = 2 group + row / 8. Of 8 fields of 6 bits, word g holds fields 0..3 in its low 24 bits and the low byte of
// fields 4..7 above them; half word g behind all words holds their upper 16 bits. No number takes more bytes than in the file.
#pragma once

#include <cstdint>
#include <cstring>

// How scale and offset of a group along K are stored; value = code * scale + offset.
typedef enum exl_scheme {
    exl_symmetric = 0,  // fp16 scale per 32, zero point 2^(bits - 1)                Q4_0 Q5_0 Q8_0
    exl_affine = 1,  // fp16 scale and offset per 32                              Q4_1 Q5_1
    exl_super32 = 2,  // fp16 d, dmin per 256; 6-bit scale, min per 32             Q4_K Q5_K
    exl_super16 = 3,  // fp16 d, dmin per 256; 4-bit scale, min per 16             Q2_K
    exl_super16_signed = 4,  // fp16 d per 256; signed scale per 16, zero 2^(bits - 1)    Q3_K Q6_K
} exl_scheme;

// What host and device both compute at compile time.
#if defined(__CUDACC__) || defined(__HIP__)
#define EXL_LAYOUT __host__ __device__ constexpr
#else
#define EXL_LAYOUT constexpr
#endif

namespace exl::layouts {

constexpr int tile_rows = 16, step_columns = 64, record_columns = 256;
constexpr int record_steps = record_columns / step_columns;
constexpr int lanes = 32, lane_pairs = 16;

EXL_LAYOUT bool is_super(int scheme) { return scheme >= exl_super32; }
// Scales in 8 fields of 6 bits.
EXL_LAYOUT bool has_fields(int bits, int scheme) {
    return scheme == exl_super32 || (scheme == exl_super16_signed && bits == 3);
}
EXL_LAYOUT int group_columns(int scheme) { return scheme == exl_super16 || scheme == exl_super16_signed ? 16 : 32; }
EXL_LAYOUT int code_bytes(int bits) { return tile_rows * step_columns * bits / 8; }
EXL_LAYOUT int scale_bytes(int bits, int scheme) {
    return scheme == exl_affine ? 128 : has_fields(bits, scheme) ? 48 : 64;
}
EXL_LAYOUT int super_bytes(int scheme) { return !is_super(scheme) ? 0 : scheme == exl_super16_signed ? 32 : 64; }
EXL_LAYOUT int step_bytes(int bits, int scheme) { return scale_bytes(bits, scheme) + code_bytes(bits); }
EXL_LAYOUT int record_bytes(int bits, int scheme) {
    return super_bytes(scheme) + record_steps * step_bytes(bits, scheme);
}
EXL_LAYOUT int64_t tile_bytes(int bits, int scheme, int64_t columns) {
    const int64_t steps = (columns + step_columns - 1) / step_columns;
    const int64_t records = (steps + record_steps - 1) / record_steps;
    return records * super_bytes(scheme) + steps * step_bytes(bits, scheme);
}

// 16 rows of 256 columns take what they take in the file.
static_assert(record_bytes(4, exl_symmetric) == 16 * 8 * 18 && record_bytes(5, exl_symmetric) == 16 * 8 * 22);
static_assert(record_bytes(8, exl_symmetric) == 16 * 8 * 34 && record_bytes(4, exl_affine) == 16 * 8 * 20);
static_assert(record_bytes(5, exl_affine) == 16 * 8 * 24 && record_bytes(4, exl_super32) == 16 * 144);
static_assert(record_bytes(5, exl_super32) == 16 * 176 && record_bytes(2, exl_super16) == 16 * 84);
static_assert(record_bytes(3, exl_super16_signed) == 16 * 110 && record_bytes(6, exl_super16_signed) == 16 * 210);
// Whatever is copied starts at a multiple of 16 bytes.
static_assert(code_bytes(2) % 16 == 0 && code_bytes(3) % 16 == 0 && code_bytes(5) % 16 == 0);

// Where the words of a lane stand among the words of a step's codes: words 0 .. wide - 1 in fours, then two, then one.
EXL_LAYOUT int wide_words(int bits) { return bits / 4 * 4; }
EXL_LAYOUT int word_place(int bits, int lane, int word) {
    const int wide = wide_words(bits), pair = bits & 2;
    if (word < wide) return word / 4 * 4 * lanes + 4 * lane + word % 4;
    if (word < wide + pair) return wide * lanes + 2 * lane + word - wide;
    return (wide + pair) * lanes + lane;
}

// Codes side by side in a half of a word, and pairs of which all words hold couples.
EXL_LAYOUT int fields_per_word(int bits) { return 16 / bits; }
EXL_LAYOUT int coupled_per_word(int bits) { return fields_per_word(bits) / 2 * 2; }
EXL_LAYOUT int coupled_pairs(int bits) { return bits * coupled_per_word(bits); }
// Where single fields stand, if there are any, and the pairs that have whole fields at all.
EXL_LAYOUT bool has_single(int bits) { return fields_per_word(bits) % 2 != 0; }
EXL_LAYOUT int whole_pairs(int bits) { return coupled_pairs(bits) + (has_single(bits) ? bits : 0); }

// A code of a pair is made of pieces: `width` bits at `shift` of a half of `word`, which are its bits from `low` on.
struct Piece {
    int word, shift, width, low;
};
// Calls f(piece) for each piece of pair 0..15.
template <class F> inline void each_piece(int bits, int pair, F f) {
    const int coupled = coupled_per_word(bits), single = pair - coupled_pairs(bits), left = pair - whole_pairs(bits);
    if (single < 0) {
        f(Piece{pair / coupled, bits * (pair % coupled), bits, 0});
    } else if (left < 0) {
        f(Piece{single, bits * coupled, bits, 0});
    } else if (bits == 6) {
        f(Piece{left, 12, 4, 0});
        f(Piece{4 + left / 2, 12 + 2 * (left % 2), 2, 4});
    } else {
        for (int i = 0; i < bits; i++) f(Piece{i, 15, 1, i});
    }
}

// Where the code of (row, column) of a step stands.
struct Place {
    int lane, pair, half;
};
EXL_LAYOUT Place place_of(int row, int column) {
    const int product = column / 16, t = column % 16 / 4, part = column % 4;
    return {4 * (row % 8) + t, 4 * product + 2 * (part / 2) + row / 8, part % 2};
}

// Writes one code into the zeroed codes of a step; the oracle of the kernels' reading.
inline void put_code(uint8_t* codes, int bits, int row, int column, unsigned code) {
    const Place place = place_of(row, column);
    each_piece(bits, place.pair, [&](Piece piece) {
        uint8_t* at = codes + 4 * word_place(bits, place.lane, piece.word);
        uint32_t word;
        std::memcpy(&word, at, 4);
        word |= (code >> piece.low & ((1u << piece.width) - 1)) << (piece.shift + 16 * place.half);
        std::memcpy(at, &word, 4);
    });
}
inline unsigned get_code(const uint8_t* codes, int bits, int row, int column) {
    const Place place = place_of(row, column);
    unsigned code = 0;
    each_piece(bits, place.pair, [&](Piece piece) {
        uint32_t word;
        std::memcpy(&word, codes + 4 * word_place(bits, place.lane, piece.word), 4);
        code |= (word >> (piece.shift + 16 * place.half) & ((1u << piece.width) - 1)) << piece.low;
    });
    return code;
}

// Writes one of 8 fields of 6 bits of rows g and g + 8 into zeroed scales of a step.
inline void put_field(uint8_t* scales, int g, int field, unsigned value) {
    const uint64_t bits = static_cast<uint64_t>(value & 63) << 6 * field;
    uint32_t word;
    uint16_t rest;
    std::memcpy(&word, scales + 4 * g, 4);
    std::memcpy(&rest, scales + 32 + 2 * g, 2);
    word |= static_cast<uint32_t>(bits);
    rest = static_cast<uint16_t>(rest | bits >> 32);
    std::memcpy(scales + 4 * g, &word, 4);
    std::memcpy(scales + 32 + 2 * g, &rest, 2);
}

}  // namespace exl::layouts
