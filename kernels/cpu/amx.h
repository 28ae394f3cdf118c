// The matrix kernels on AMX tiles: 16 activation rows x 16 weight rows at a time.
//
// int8: a group is one tile product or two; its int32 results are the exact integers of group_affine.h and are flushed by the
// same function in the same order, so AMX and VNNI give equal bits and can share a matrix product (full tiles here, the rest there).
// bf16: sums stay in the tile over all of K; rows are independent, so any number of rows gives the same bits.
#pragma once

#if EXL_LEVEL >= 4

#include "dense.h"

namespace EXL_ISA {

// Tile numbers are part of the instruction, hence template arguments.
template <int t> inline void tile_zero() { asm volatile("tilezero %%tmm%c0" ::"i"(t)); }
template <int t> inline void tile_load(const void* p, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(t) : "memory");
}
template <int t> inline void tile_store(void* p, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(t) : "memory");
}
// c += a (16 x 4n) times b (4n x 16): signed by unsigned bytes, signed by signed bytes, bf16.
template <int c, int a, int b> inline void tile_dot_su() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
template <int c, int a, int b> inline void tile_dot_ss() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
template <int c, int a, int b> inline void tile_dot_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}

struct alignas(64) TileConfig {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t column_bytes[16] = {};
    uint8_t rows[16] = {};
};

// Tiles 0..3 results, 4..5 activations (m rows of a_bytes), 6..7 weights (a_bytes / 4 rows of 64 bytes).
inline void configure_tiles(Worker& worker, int m, int a_bytes) {
    const int key = m * 256 + a_bytes;
    if (worker.tile_rows == key) return;
    TileConfig config;
    for (int t = 0; t < 4; ++t) config.rows[t] = uint8_t(m), config.column_bytes[t] = 64;
    for (int t = 4; t < 6; ++t) config.rows[t] = uint8_t(m), config.column_bytes[t] = uint16_t(a_bytes);
    for (int t = 6; t < 8; ++t) config.rows[t] = uint8_t(a_bytes / 4), config.column_bytes[t] = 64;
    asm volatile("ldtilecfg %0" ::"m"(config));
    worker.tile_rows = key;
}

// Scale factors of 16 rows side by side, one TileScales per 32 columns.
struct TileScales {
    float scale[16];
    float scaled_sum[16];
    float scaled_sum16[2][16];
};

inline void transpose_scales(const Rows& rows, int first, TileScales* out) {
    const int k = rows.k;
    for (int m = 0; m < 16; ++m) {
        const Record row = rows[first + m];
        for (int g = 0; g < k / 32; ++g) {
            out[g].scale[m] = row.scale(k)[g];
            out[g].scaled_sum[m] = row.scaled_sum(k)[g];
            out[g].scaled_sum16[0][m] = row.scaled_sum16(k)[2 * g];
            out[g].scaled_sum16[1][m] = row.scaled_sum16(k)[2 * g + 1];
        }
    }
}

// How the codes of 32 columns become B tiles that face the codes of a record, high and low parts in turns.
//
//   up to 4 bits   one tile a group: 16 * code opposite the high parts, code opposite the low ones
//   more           two: codes opposite the high parts, codes opposite the low ones; their results are joined afterwards
//
// Zeros stand opposite the columns of other groups.
template <int bits, Scheme scheme> struct TilePanel {
    static constexpr bool joined = bits <= 4;
    static constexpr int tiles_per_group = joined ? 1 : 2;
    static constexpr int groups_per_32 = 32 / Scales<scheme>::size;
    static constexpr int bytes_per_32 = 1024 * tiles_per_group * groups_per_32;

    // Tile of a group that the high or low parts of four columns belong to, and the line in it.
    static constexpr int line(int column4, bool low) {
        const int group = column4 * groups_per_32 / 8, tile = group * tiles_per_group + (!joined && low);
        return 1024 * tile + 16 * code_offset(column4) + (low ? 256 : 0);
    }
};

// All codes of a block, without the constant zero point.
template <int bits, Scheme scheme> void unpack_block(const Weight& w, const uint8_t* block, int k, uint8_t* panel) {
    using Panel = TilePanel<bits, scheme>;
    const i32v zero = i8_set(int8_t(w.zero)), zero16 = i8_set(int8_t(16 * w.zero));
    for (int g = 0; g < k / 32; ++g) {
        uint8_t* out = panel + int64_t(Panel::bytes_per_32) * g;
        if constexpr (Panel::bytes_per_32 > 1024) __builtin_memset(out, 0, Panel::bytes_per_32);
#pragma GCC unroll 8
        for (int c = 0; c < 8; ++c) {
            const i32v u = unpack<bits>(block + int64_t(g) * 64 * bits, c);
            const i32v code = Scales<scheme>::has_offset ? u : i8_sub(u, zero);
            const i32v times16 = Scales<scheme>::has_offset ? i_shl<4>(u) : i8_sub(i_shl<4>(u), zero16);
            i_store(out + Panel::line(c, false), Panel::joined ? times16 : code);
            i_store(out + Panel::line(c, true), code);
        }
    }
}

template <Scheme scheme, int c, int a, int b> inline void tile_product(const uint8_t* panel, int32_t* out) {
    tile_zero<c>();
    tile_load<b>(panel, 64);
    if constexpr (Scales<scheme>::has_offset)
        tile_dot_su<c, a, b>();
    else
        tile_dot_ss<c, a, b>();
    tile_store<c>(out, 64);
}

inline int64_t panel_bytes(const Weight& w, int k) {
    if (w.family != Family::group_affine) return 0;
    return dispatch_group_affine(
        w, [&](auto bits, auto scheme) { return int64_t(k / 32) * TilePanel<bits.value, scheme.value>::bytes_per_32; });
}

// 16 rows from `first`, y (16, 16). Two groups are multiplied while the two before them are flushed.
template <int bits, Scheme scheme> void tile_rows(const uint8_t* scales, const uint8_t* panel, const Rows& rows,
                                                  int first, const TileScales* t, float* y) {
    using S = Scales<scheme>;
    constexpr int size = S::size, tiles = TilePanel<bits, scheme>::tiles_per_group;
    const int groups = rows.k / size;
    alignas(64) int32_t out[4][tiles][256];
    const int8_t* codes = rows[first].codes();
    f32v sum[16];
    for (int m = 0; m < 16; ++m) sum[m] = f_zero();
    const auto start = [&](int g, auto slot) {
        constexpr int c = decltype(slot)::value;
        tile_load<4 + c % 2>(codes + 64 * (g * size / 32), rows.stride);
        const uint8_t* b = panel + int64_t(1024 * tiles) * g;
        tile_product<scheme, c, 4 + c % 2, 6 + c % 2>(b, out[c][0]);
        if constexpr (tiles == 2) tile_product<scheme, c, 4 + c % 2, 6 + c % 2>(b + 1024, out[c][1]);
    };
    const auto finish = [&](int g, const int32_t (*dots)[256]) {
        f32v s = f_zero(), o = f_zero();
        S::load(scales, g, s, o);
        const TileScales& ts = t[g * size / 32];
        const float* scaled = size == 32 ? ts.scaled_sum : ts.scaled_sum16[g & 1];
#pragma GCC unroll 16
        for (int m = 0; m < 16; ++m) {
            i32v dot = i_load(dots[0] + 16 * m);
            if constexpr (tiles == 2) dot = i_add(i_shl<4>(dot), i_load(dots[1] + 16 * m));
            sum[m] = flush<scheme>(sum[m], dot, s, o, ts.scale[m], scaled[m]);
        }
    };
    int g = 0;
    if (groups >= 2) start(0, Constant<0>{}), start(1, Constant<1>{});
    for (; g + 4 <= groups; g += 4) {
        start(g + 2, Constant<2>{}), start(g + 3, Constant<3>{});
        finish(g, out[0]), finish(g + 1, out[1]);
        if (g + 6 <= groups) start(g + 4, Constant<0>{}), start(g + 5, Constant<1>{});
        finish(g + 2, out[2]), finish(g + 3, out[3]);
    }
    if (g + 2 <= groups) finish(g, out[0]), finish(g + 1, out[1]), g += 2;
    if (g < groups) start(g, Constant<0>{}), finish(g, out[0]);
    for (int m = 0; m < 16; ++m) f_store(y + 16 * m, sum[m]);
}

template <int bits, Scheme scheme> void tile_multiply(const Weight& w, const uint8_t* block, const Rows& rows,
                                                      int first, int count, const TileScales* scales, uint8_t* panel,
                                                      Worker& worker, float* y) {
    int done = 0;
    if (count >= 16) {
        configure_tiles(worker, 16, 64);
        unpack_block<bits, scheme>(w, block, rows.k, panel);
        for (; count - done >= 16; done += 16)
            tile_rows<bits, scheme>(block + w.scales_offset, panel, rows, first + done,
                                    scales + int64_t((first + done) / 16) * (rows.k / 32), y + 16 * done);
    }
    float* rest = y + 16 * done;
    if (done < count) block_multiply<bits, scheme, 1>(w, &block, rows, first + done, count - done, &rest);
}

// bf16, up to 16 rows at a time.
inline void dense_tile_multiply(const uint8_t* block, const Rows& rows, int first, int count, Worker& worker,
                                float* y) {
    for (int done = 0; done < count; done += 16) {
        configure_tiles(worker, count - done < 16 ? count - done : 16, 64);
        tile_zero<0>();
        const uint8_t* a = rows[first + done].base;
        for (int k = 0; k < rows.k; k += 32) {
            __builtin_prefetch(block + 32 * k + prefetch_distance);
            tile_load<4>(a + 2 * k, rows.stride);
            tile_load<6>(block + 32 * k, 64);
            tile_dot_bf16<0, 4, 6>();
        }
        tile_store<0>(y + 16 * done, 64);
    }
}

// Two blocks of weights at once, 32 rows at a time: each tile that is loaded serves two products. The activations of many
// rows come from the second-level cache, whose bandwidth is the limit.
inline void dense_tile_multiply_pair(const uint8_t* left, const uint8_t* right, const Rows& rows, int first, int count,
                                     Worker& worker, float* y_left, float* y_right) {
    int done = 0;
    if (count >= 32) configure_tiles(worker, 16, 64);
    for (; count - done >= 32; done += 32) {
        const uint8_t* upper = rows[first + done].base;
        const uint8_t* lower = rows[first + done + 16].base;
        tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
        for (int k = 0; k < rows.k; k += 32) {
            tile_load<6>(left + 32 * k, 64);
            tile_load<4>(upper + 2 * k, rows.stride);
            tile_dot_bf16<0, 4, 6>();
            tile_load<7>(right + 32 * k, 64);
            tile_dot_bf16<1, 4, 7>();
            tile_load<5>(lower + 2 * k, rows.stride);
            tile_dot_bf16<2, 5, 6>();
            tile_dot_bf16<3, 5, 7>();
        }
        tile_store<0>(y_left + 16 * done, 64);
        tile_store<1>(y_right + 16 * done, 64);
        tile_store<2>(y_left + 16 * (done + 16), 64);
        tile_store<3>(y_right + 16 * (done + 16), 64);
    }
    if (done == count) return;
    dense_tile_multiply(left, rows, first + done, count - done, worker, y_left + 16 * done);
    dense_tile_multiply(right, rows, first + done, count - done, worker, y_right + 16 * done);
}

}  // namespace EXL_ISA

#endif
