// Rows of activations as the trellis kernels read them: rotated, and int8 per 128 columns where the codebook is mul1.
//
// A record is made from its row alone. Inside a group of 128 columns the order is [quad][row of a tile][tile row of the
// quad], column 64 quad + 16 tile_row + row, so that what a line of 32 states needs lies side by side:
//
//   bytes   [ int8 code ] K                 tiles of AMX
//   words   [ int16 code ] K                16-bit dot products
//   pairs   [ int8 code, the same again ] K the bytes of a product are summed by the dot product itself
//   floats  [ float ] K                     mcg, 3INST
//   then    [ scale K/128 f32 ][ 510 * sum of codes K/128 i32 ][ mul1_rest / mul1_scale * sum of scaled codes, f32 ]
#pragma once

#include "activations.h"
#include "trellis.h"
#include "trellis_words.h"

namespace EXL_ISA {

using exl::layouts::Codebook;

enum class Codes { bytes, words, pairs, floats };

struct TrellisRecord {
    uint8_t* base;
    int64_t codes_bytes;
    int groups;

    float* scale() const { return reinterpret_cast<float*>(base + codes_bytes); }
    int32_t* zero() const { return reinterpret_cast<int32_t*>(scale() + groups); }
    float* rest() const { return scale() + 2 * groups; }
};

struct TrellisRecords {
    uint8_t* base;
    int64_t stride;
    int k;  // padded
    Codes codes;

    static int code_bytes(Codes codes) { return codes == Codes::floats ? 4 : codes == Codes::bytes ? 1 : 2; }
    // An odd number of cache lines, so that 16 rows of a tile do not fall into one cache set.
    static int64_t stride_of(Codes codes, int k) {
        const int64_t bytes = int64_t(k) * code_bytes(codes) + (codes == Codes::floats ? 0 : k / 128 * 8 + 4);
        return ((bytes + 63) / 64 | 1) * 64;
    }
    TrellisRecord operator[](int64_t row) const {
        return {base + row * stride, int64_t(k) * code_bytes(codes), k / trellis_block};
    }
};

// One stage of the butterfly between lanes: x[i] + x[i ^ d] where bit d of i is clear, x[i ^ d] - x[i] where it is set.
template <int distance> inline f32v f_butterfly(f32v x) {
    constexpr uint16_t clear = distance == 1 ? 0x5555 : distance == 2 ? 0x3333 : distance == 4 ? 0x0f0f : 0x00ff;
    const f32v sign = f_select(clear, f_set(1.0f), f_set(-1.0f));
    return f_fma(x, sign, f_swap<distance>(x));
}

// Hadamard-128 without its factor 1 / sqrt(128), over eight vectors. It is the product of one butterfly for each bit of
// the index, so any order of these bits will do.
inline void hadamard_128(f32v* v) {
#pragma GCC unroll 3
    for (int step = 1; step < 8; step *= 2)
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i)
            if (!(i & step)) {
                const f32v a = v[i], b = v[i + step];
                v[i] = f_add(a, b);
                v[i + step] = f_sub(a, b);
            }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) v[i] = f_butterfly<8>(f_butterfly<4>(f_butterfly<2>(f_butterfly<1>(v[i]))));
}

constexpr float root_128 = 0.08838834764831845f;  // 1 / sqrt(128)

// line (k) = Hd(norm(x) * suh); x has `cols` columns and is extended with zeros.
inline void rotate_row(const LinearArgs& args, const float* x, const Weight& w, float* line) {
    normalize_row(x, args.norm, args.eps, args.cols, w.cols_padded, line);
    for (int g = 0; g < w.cols_padded; g += trellis_block) {
        f32v v[8];
        for (int i = 0; i < 8; ++i) v[i] = f_mul(f_load(line + g + 16 * i), f_load_half(w.suh + g + 16 * i));
        hadamard_128(v);
        for (int i = 0; i < 8; ++i) f_store(line + g + 16 * i, f_mul(v[i], f_set(root_128)));
    }
}

// Four vectors of codes, one for each tile row of a quad, as 64 bytes in the order of a record.
inline void store_quad(uint8_t* out, const i32v* q) {
    const i32v low = i_set(255);
    const i32v ab = i_or(i_and(q[0], low), i_shl<8>(i_and(q[1], low)));
    const i32v cd = i_or(i_shl<16>(i_and(q[2], low)), i_shl<24>(q[3]));
    i_store(out, i_or(ab, cd));
}

// Codes of one group; x becomes the rounding error where `keep_error`. Returns the sum of the codes.
inline int32_t quantize_group(float* x, uint8_t* codes, float& scale, bool keep_error) {
    f32v v[8], peak = f_zero();
    for (int i = 0; i < 8; ++i) {
        v[i] = f_load(x + 16 * i);
        peak = f_max(peak, f_abs(v[i]));
    }
    const float largest = f_max_lane(peak);
    scale = largest / 127.0f;
    const f32v inverse = f_set(largest > 0x1p-120f ? 127.0f / largest : 0.0f), minus = f_set(-scale);
    i32v q[8], sum = i_zero();
    for (int i = 0; i < 8; ++i) {
        q[i] = f_to_i(f_mul(v[i], inverse));
        sum = i_add(sum, q[i]);
        if (keep_error) f_store(x + 16 * i, f_fma(i_to_f(q[i]), minus, v[i]));
    }
    store_quad(codes, q);
    store_quad(codes + 64, q + 4);
    return i_sum(sum);
}

// The int8 record of a rotated row. `bytes` holds k bytes.
inline void quantize_trellis_row(float* line, const TrellisRecords& records, int r, uint8_t* bytes, bool keep_error) {
    const TrellisRecord out = records[r];
    uint8_t* codes = records.codes == Codes::bytes ? out.base : bytes;
    float total = 0.0f;
    for (int g = 0; g < out.groups; ++g) {
        const int32_t sum = quantize_group(line + 128 * g, codes + 128 * g, out.scale()[g], keep_error);
        out.zero()[g] = exl::layouts::mul1_zero * sum;
        total += out.scale()[g] * float(sum);
    }
    *out.rest() = total * (exl::layouts::mul1_rest / exl::layouts::mul1_scale);
    uint16_t* wide = reinterpret_cast<uint16_t*>(out.base);
    if (records.codes == Codes::words)
        for (int i = 0; i < records.k; ++i) wide[i] = uint16_t(int16_t(int8_t(codes[i])));
    if (records.codes == Codes::pairs)
        for (int i = 0; i < records.k; ++i) wide[i] = uint16_t(codes[i] * 257);
}

inline void store_float_row(const float* line, const TrellisRecords& records, int r) {
    float* out = reinterpret_cast<float*>(records[r].base);
    for (int quad = 0; quad < records.k / 64; ++quad)
        for (int i = 0; i < 64; ++i) out[64 * quad + i] = line[64 * quad + 16 * (i % 4) + i / 4];
}

// Fills record r. Returns the squared rounding error relative to the row where `residual_above` asks for it.
inline float prepare_trellis_row(const LinearArgs& args, const float* x, const Weight& w, const TrellisRecords& records,
                                 int r, float* line, uint8_t* bytes) {
    rotate_row(args, x, w, line);
    if (records.codes == Codes::floats) {
        store_float_row(line, records, r);
        return 0.0f;
    }
    const bool compare = args.residual_above > 0.0f && args.residual_above < __builtin_inff();
    const float size = compare ? sum_of_squares(line, records.k) : 0.0f;
    quantize_trellis_row(line, records, r, bytes, compare);
    return size > 0.0f ? sum_of_squares(line, records.k) / size : 0.0f;
}

// Record r becomes that of the rounding error of a row; its main record is made again at r on the way.
inline void prepare_trellis_residual(const LinearArgs& args, const float* x, const Weight& w,
                                     const TrellisRecords& records, int r, float* line, uint8_t* bytes) {
    rotate_row(args, x, w, line);
    quantize_trellis_row(line, records, r, bytes, true);
    quantize_trellis_row(line, records, r, bytes, false);
}

}  // namespace EXL_ISA
