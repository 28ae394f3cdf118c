// One band of a trellis times rows of activations: y = sums over groups of scale * (dot(codes, byte sums) - 510 * sum).
//
//   chunk of a group --states--> 2 columns x 32 rows of 8 tiles --+--> pairs: straight into dot products, for a row or two
//                                                                 +--> 4 KiB buffer (8 of floats), then row after row
//
// With mul1 a weight is affine in the sum of the bytes of state * multiplier. Integer sums over a group of 128 columns
// are exact, so all ways to compute them give equal bits, and floats are added group by group in ascending order. mcg
// and 3INST are decoded to floats and multiplied with float activations, in one order for any number of rows.
//
// A row of y is [c 8][lane 16]: column 16 (2 (lane / 4) + lane % 2) + 8 (lane / 2 % 2) + c of the band.
#pragma once

#include <utility>

#include "amx.h"
#include "trellis_input.h"

namespace EXL_ISA {

constexpr int trellis_prefetch = 4096;
constexpr int trellis_chunk = 512;  // rows that share the decoding of a band; a multiple of 16

// Calls f(Constant<0>), ..., f(Constant<n - 1>).
template <int n, typename F> __attribute__((always_inline)) inline void each_constant(F f) {
    [&]<int... i>(std::integer_sequence<int, i...>)
        __attribute__((always_inline)) { (f(Constant<i>{}), ...); }(std::make_integer_sequence<int, n>{});
}

// The row of a tile and which of two columns position i of a chunk is.
constexpr int chunk_row(int i) { return 2 * (i / 8) + i % 2 + 8 * (i / 2 % 2); }
constexpr int chunk_column(int i) { return i / 4 % 2; }

// Calls f(Constant<i>, states) for the 32 positions of chunk c of a quad.
template <int rate2, typename F>
__attribute__((always_inline)) inline void each_state(const uint8_t* group, int quad, int c, F f) {
    const uint8_t* words = group + 128 * rate2 * c + 64 * quad;
    const uint8_t* before = c ? words - 128 : words + 128 * (8 * rate2 - 1);
    each_constant<32>([&](auto i) __attribute__((always_inline)) {
        constexpr int end = (i.value + 1) * rate2 / 2, last = (end - 1) / 16, right = 16 * (last + 1) - end;
        const w32 after = w_load(words + 128 * last);
        if constexpr (right == 0)
            f(i, after);
        else
            f(i, w_funnel<16 - right>(w_load(last ? words + 128 * (last - 1) : before), after));
    });
}

// The halves of state * multiplier.
struct Products {
    w32 low, high;
};
inline Products products(w32 state, uint32_t multiplier) {
    const w32 low = w_set(uint16_t(multiplier)), high = w_set(uint16_t(multiplier >> 16));
    return {w_mul_low(state, low), w_add(w_mul_high(state, low), w_mul_low(state, high))};
}
constexpr uint32_t mul1_multiplier = 0x83DCD12Du;

inline f32v trellis_flush(f32v y, i32v dot, int32_t zero, float scale) {
    return f_fma(i_to_f(i_sub(dot, i_set(zero))), f_set(scale), y);
}

// Scales and zero points of one group of many rows side by side.
struct GroupScales {
    float scale[trellis_chunk];
    int32_t zero[trellis_chunk];

    void gather(const TrellisRecords& rows, int first, int count, int g) {
        for (int m = 0; m < count; ++m) {
            const TrellisRecord row = rows[first + m];
            scale[m] = row.scale()[g];
            zero[m] = row.zero()[g];
        }
    }
};

inline void prefetch_chunk(const uint8_t* group, int rate2, int c) {
    for (int line = 0; line < 2 * rate2; ++line)
        __builtin_prefetch(group + 128 * rate2 * c + trellis_prefetch + 64 * line);
}

#if EXL_LEVEL >= 2
// M rows of `pairs`; y (M, 128) is added to.
template <int rate2, int M> void multiply_pairs(const uint8_t* band, const TrellisRecords& rows, int first, float* y) {
    for (int g = 0; g < rows.k / trellis_block; ++g) {
        const uint8_t* group = band + g * trellis_group_bytes(rate2);
        for (int c = 0; c < 8; ++c) {
            i32v low[M][2] = {}, high[M][2] = {};
            prefetch_chunk(group, rate2, c);
            for (int quad = 0; quad < 2; ++quad)
                each_state<rate2>(group, quad, c, [&](auto i, w32 state) __attribute__((always_inline)) {
                    constexpr int row = chunk_row(i.value), column = chunk_column(i.value);
                    const Products p = products(state, mul1_multiplier);
                    for (int m = 0; m < M; ++m) {
                        const w32 q = w_repeat8(rows[first + m].base + 256 * g + 128 * quad + 8 * row);
                        low[m][column] = dot_u8s8(low[m][column], p.low, q);
                        high[m][column] = dot_u8s8(high[m][column], p.high, q);
                    }
                });
            for (int m = 0; m < M; ++m) {
                const i32v dot = i_pair_sum(i_add(low[m][0], high[m][0]), i_add(low[m][1], high[m][1]));
                float* out = y + 128 * m + 16 * c;
                const TrellisRecord row = rows[first + m];
                f_store(out, trellis_flush(f_load(out), dot, row.zero()[g], row.scale()[g]));
            }
        }
    }
}
#endif

// Byte sums of a chunk: sums[quad][row][column 2][32].
template <int rate2> void decode_sums(const uint8_t* group, int c, uint16_t* sums) {
    for (int quad = 0; quad < 2; ++quad)
        each_state<rate2>(group, quad, c, [&](auto i, w32 state) __attribute__((always_inline)) {
            const Products p = products(state, mul1_multiplier);
            uint16_t* out = sums + 32 * (32 * quad + 2 * chunk_row(i.value) + chunk_column(i.value));
            w_store(out, w_add(w_byte_sum(p.low), w_byte_sum(p.high)));
        });
}

// R rows of `words` times the byte sums of a chunk.
template <int R> void add_words(const uint16_t* sums, const TrellisRecords& rows, int first, int g, const float* scale,
                                const int32_t* zero, float* y) {
    i32v dot[R][2];
    for (int m = 0; m < R; ++m) dot[m][0] = dot[m][1] = i_zero();
    for (int line = 0; line < 32; ++line) {
        const w32 a = w_load(sums + 64 * line), b = w_load(sums + 64 * line + 32);
        for (int m = 0; m < R; ++m) {
            const w32 q = w_repeat8(rows[first + m].base + 256 * g + 8 * line);
            dot[m][0] = w_dot(dot[m][0], a, q);
            dot[m][1] = w_dot(dot[m][1], b, q);
        }
    }
    for (int m = 0; m < R; ++m) {
        float* out = y + 128 * m;
        f_store(out, trellis_flush(f_load(out), i_pair_sum(dot[m][0], dot[m][1]), zero[m], scale[m]));
    }
}

constexpr int words_rows = EXL_LEVEL >= 2 ? 8 : 2;  // what the registers hold

inline void multiply_words(const uint16_t* sums, const TrellisRecords& rows, const GroupScales& scales, int first,
                           int count, int g, float* y) {
    int done = 0;
    const auto next = [&](auto size) {
        constexpr int R = decltype(size)::value;
        add_words<R>(sums, rows, first + done, g, scales.scale + done, scales.zero + done, y + 128 * done);
        done += R;
    };
    while (count - done >= words_rows) next(Constant<words_rows>{});
    while (done < count) next(Constant<1>{});
}

#if EXL_LEVEL >= 4
// Byte sums cut into quotient and remainder by four, as B tiles: tiles[quotient, remainder][quad][row of a tile][64].
template <int rate2> void decode_tiles(const uint8_t* group, int c, uint8_t* tiles) {
    alignas(64) uint16_t sums[2048];
    decode_sums<rate2>(group, c, sums);
    const w32 three = w_set(3);
    for (int line = 0; line < 32; ++line) {
        const w32 a = w_load(sums + 64 * line), b = w_load(sums + 64 * line + 32);
        const w32 quotient = _mm512_packus_epi16(_mm512_srli_epi16(a, 2), _mm512_srli_epi16(b, 2));
        w_store(tiles + 64 * line, quotient);
        w_store(tiles + 2048 + 64 * line, _mm512_packus_epi16(w_and(a, three), w_and(b, three)));
    }
}

inline void start_tile(const TrellisRecords& rows, int first, int g, int32_t* out) {
    const uint8_t* codes = rows[first].base + 128 * g;
    tile_zero<0>();
    tile_zero<1>();
    tile_load<2>(codes, rows.stride);
    tile_load<3>(codes + 64, rows.stride);
    tile_dot_su<0, 2, 4>();
    tile_dot_su<1, 2, 6>();
    tile_dot_su<0, 3, 5>();
    tile_dot_su<1, 3, 7>();
    tile_store<0>(out, 64);
    tile_store<1>(out + 256, 64);
}

inline void finish_tile(const GroupScales& scales, int first, const int32_t* dots, float* y) {
#pragma GCC unroll 16
    for (int m = 0; m < 16; ++m) {
        const i32v dot = i_add(i_shl<2>(i_load(dots + 16 * m)), i_load(dots + 256 + 16 * m));
        f_store(y + 128 * m, trellis_flush(f_load(y + 128 * m), dot, scales.zero[first + m], scales.scale[first + m]));
    }
}

// Rows of `bytes` in tiles of 16; records and y are there up to the next multiple of 16. The weights stay in tiles 4 to 7.
inline void multiply_tiles(const uint8_t* tiles, const TrellisRecords& rows, const GroupScales& scales, int first,
                           int count, int g, float* y) {
    alignas(64) int32_t dots[2][512];
    tile_load<4>(tiles, 64);
    tile_load<5>(tiles + 1024, 64);
    tile_load<6>(tiles + 2048, 64);
    tile_load<7>(tiles + 3072, 64);
    start_tile(rows, first, g, dots[0]);
    int done = 0;
    for (; done + 16 < count; done += 16) {  // a product is finished while the next one is on its way
        start_tile(rows, first + done + 16, g, dots[(done / 16 + 1) % 2]);
        finish_tile(scales, done, dots[done / 16 % 2], y + 128 * done);
    }
    finish_tile(scales, done, dots[done / 16 % 2], y + 128 * done);
}
#endif

// mcg and 3INST, weights of a chunk: weights[quad][row][column 2][32].
template <int rate2> void decode_floats(const Weight& w, const uint8_t* group, int c, float* weights) {
    const bool mcg = w.codebook == Codebook::mcg;
    const w32 mask = w_set(0x8fff), flip = w_set(0x3b60), addend = w_set(mcg ? 0 : 64248484 & 0xffff);
    // The carry of the lower halves is 1 + (all ones where there is none).
    const w32 high_addend = w_set(uint16_t(mcg ? 1 : (64248484 >> 16) + 1));
    const uint32_t multiplier = mcg ? 0xCBAC1FEDu : 89226354u;
    for (int quad = 0; quad < 2; ++quad)
        each_state<rate2>(group, quad, c, [&](auto i, w32 state) __attribute__((always_inline)) {
            Products p = products(state, multiplier);
            p.low = w_add(p.low, addend);
            p.high = w_add(w_add(p.high, high_addend), w_at_least(p.low, addend));
            f32v a, b;
            w_half_sum(w_xor(w_and(p.low, mask), flip), w_xor(w_and(p.high, mask), flip), a, b);
            float* out = weights + 32 * (32 * quad + 2 * chunk_row(i.value) + chunk_column(i.value));
            f_store(out, a);
            f_store(out + 16, b);
        });
}

// R rows of `floats` times the weights of a chunk; y (R, 512) is [c][column 2][tile column 8][tile row 4], added to.
template <int R> void add_floats(const float* weights, const TrellisRecords& rows, int first, int g, float* y) {
    f32v sum[R][4];
    for (int m = 0; m < R; ++m)
        for (int i = 0; i < 4; ++i) sum[m][i] = f_load(y + 512 * m + 16 * i);
    for (int line = 0; line < 32; ++line) {
        const float* p = weights + 64 * line;
        for (int m = 0; m < R; ++m) {
            const f32v x = f_repeat4(reinterpret_cast<const float*>(rows[first + m].base) + 128 * g + 4 * line);
            for (int i = 0; i < 4; ++i) sum[m][i] = f_fma(f_load(p + 16 * i), x, sum[m][i]);
        }
    }
    for (int m = 0; m < R; ++m)
        for (int i = 0; i < 4; ++i) f_store(y + 512 * m + 16 * i, sum[m][i]);
}

inline void multiply_floats(const float* weights, const TrellisRecords& rows, int first, int count, int g, float* y) {
    constexpr int R = EXL_LEVEL >= 2 ? 4 : 1;
    int done = 0;
    for (; count - done >= R; done += R) add_floats<R>(weights, rows, first + done, g, y + 512 * done);
    for (; done < count; ++done) add_floats<1>(weights, rows, first + done, g, y + 512 * done);
}

// Sums the four tile rows of a quad: (512) -> (128), in place.
inline void fold_floats(float* y) {
    float folded[128];
    for (int c = 0; c < 8; ++c)
        for (int lane = 0; lane < 16; ++lane) {
            const int column = lane / 2 % 2, tile = 2 * (lane / 4) + lane % 2;
            const float* p = y + 64 * c + 32 * column + 4 * tile;
            folded[16 * c + lane] = (p[0] + p[1]) + (p[2] + p[3]);
        }
    for (int i = 0; i < 128; ++i) y[i] = folded[i];
}

// Consecutive records and where their results go.
struct TrellisRange {
    int first, count;
    float* y;  // (count, 128), of floats (count, 512)
};

inline void start_rows(const TrellisRecords& rows, const TrellisRange& range) {
    const int width = rows.codes == Codes::floats ? 512 : 128;
    for (int m = 0; m < range.count; ++m) {
        const f32v start = rows.codes == Codes::floats ? f_zero() : f_set(*rows[range.first + m].rest());
        for (int i = 0; i < width; i += 16) f_store(range.y + width * m + i, start);
    }
}

// The chunk-wise kernels: a chunk is decoded once for all rows.
template <int rate2> void multiply_chunks(const Weight& w, const uint8_t* band, const TrellisRecords& rows,
                                          const TrellisRange* ranges, int num_ranges) {
    alignas(64) float buffer[2048];
    GroupScales scales[2];
    for (int g = 0; g < rows.k / trellis_block; ++g) {
        const uint8_t* group = band + g * trellis_group_bytes(rate2);
        for (int i = 0; i < num_ranges && rows.codes != Codes::floats; ++i)
            scales[i].gather(rows, ranges[i].first, ranges[i].count, g);
        for (int c = 0; c < 8; ++c) {
            prefetch_chunk(group, rate2, c);
            if (rows.codes == Codes::floats) decode_floats<rate2>(w, group, c, buffer);
#if EXL_LEVEL >= 4
            else if (rows.codes == Codes::bytes)
                decode_tiles<rate2>(group, c, reinterpret_cast<uint8_t*>(buffer));
#endif
            else
                decode_sums<rate2>(group, c, reinterpret_cast<uint16_t*>(buffer));
            for (int i = 0; i < num_ranges; ++i) {
                const TrellisRange& range = ranges[i];
                if (rows.codes == Codes::floats)
                    multiply_floats(buffer, rows, range.first, range.count, g, range.y + 64 * c);
#if EXL_LEVEL >= 4
                else if (rows.codes == Codes::bytes)
                    multiply_tiles(reinterpret_cast<uint8_t*>(buffer), rows, scales[i], range.first, range.count, g,
                                   range.y + 16 * c);
#endif
                else
                    multiply_words(reinterpret_cast<uint16_t*>(buffer), rows, scales[i], range.first, range.count, g,
                                   range.y + 16 * c);
            }
        }
    }
}

template <int rate2>
void multiply_band(const Weight& w, int index, const TrellisRecords& rows, const TrellisRange* ranges, int num_ranges) {
    const uint8_t* band = w.data + w.block_bytes * index;
    for (int i = 0; i < num_ranges; ++i) start_rows(rows, ranges[i]);
#if EXL_LEVEL >= 2
    if (rows.codes == Codes::pairs) {
        for (int i = 0; i < num_ranges; ++i) {
            const TrellisRange& range = ranges[i];
            int done = 0;
            for (; range.count - done >= 2; done += 2)
                multiply_pairs<rate2, 2>(band, rows, range.first + done, range.y + 128 * done);
            if (done < range.count) multiply_pairs<rate2, 1>(band, rows, range.first + done, range.y + 128 * done);
        }
        return;
    }
#endif
    multiply_chunks<rate2>(w, band, rows, ranges, num_ranges);
    if (rows.codes != Codes::floats) return;
    for (int i = 0; i < num_ranges; ++i)
        for (int m = 0; m < ranges[i].count; ++m) fold_floats(ranges[i].y + 512 * m);
}

// Calls f(Constant<rate2>).
template <typename F> inline void dispatch_rate(int rate2, F f) {
    switch (rate2) {
        case 2: return f(Constant<2>{});
        case 3: return f(Constant<3>{});
        case 4: return f(Constant<4>{});
        case 5: return f(Constant<5>{});
        case 6: return f(Constant<6>{});
        case 7: return f(Constant<7>{});
        case 8: return f(Constant<8>{});
        case 10: return f(Constant<10>{});
        case 12: return f(Constant<12>{});
        case 14: return f(Constant<14>{});
        default: return f(Constant<16>{});
    }
}

}  // namespace EXL_ISA
