// Trellis as a Format of products.cuh.
#pragma once

#include "exl/bits.h"
#include "gemm/products.cuh"
#include "gemm/trellis_launch.h"

namespace exl {
namespace gemm {

// Two states of 16 bits -> two halves, exactly as the format defines them.
template <bool mul1> EXL_DEVICE uint32_t decode_pair(uint32_t first, uint32_t second, Multiplier m) {
    if constexpr (mul1) {
        // 1024 + sum of bytes is the half with these bits; then one fused rounding.
        const int32_t bias = 0x6400;
        const auto sum = [&](uint32_t state) {
            return static_cast<uint32_t>(dot4_unsigned(state * m.factor, 0x01010101u, bias));
        };
        const uint32_t both = byte_perm(sum(first), sum(second), 0x5410);
        return bits(fma2(half2_from_bits(both), half2_from_bits(0x1eee1eeeu), half2_from_bits(0xc931c931u)));
    } else {
        const auto scramble = [&](uint32_t state) {
            return lop3<0x6a>(state * m.factor + m.addend, 0x8fff8fffu, 0x3b603b60u);  // (a & b) ^ c
        };
        const uint32_t x = scramble(first), y = scramble(second);
        return bits(add2(half2_from_bits(byte_perm(x, y, 0x5410)), half2_from_bits(byte_perm(x, y, 0x7632))));
    }
}

// The four registers of lane `lane`'s fragment of one tile of 8 * rate2 / 2 words.
template <int rate2, bool mul1>
EXL_DEVICE void decode_tile(const uint32_t* tile, int lane, Multiplier m, uint32_t (&a)[4]) {
    constexpr int words = 4 * rate2, bits = 4 * rate2;  // of a tile; of a lane's 8 symbols
    constexpr int own = (bits + 31) / 32;
    // Words aligned to the lane's first bit, and the word before it: the stream is a ring.
    const int start = bits * lane, first = start / 32, shift = start % 32;
    uint32_t raw[own + 2], aligned[own + 1];
    constexpr bool whole = bits % 32 == 0;
#pragma unroll
    for (int i = 0; i < own + (whole ? 1 : 2); i++) {
        const int at = first - 1 + i;
        raw[i] = tile[at < 0 ? at + words : at >= words ? at - words : at];
    }
#pragma unroll
    for (int i = 0; i <= own; i++) aligned[i] = whole ? raw[i] : funnel_shift_left(raw[i + 1], raw[i], shift);
    uint32_t states[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const int end = (j + 1) * rate2 / 2, word = (end - 1) / 32 + 1, down = 32 * word - end;
        states[j] = funnel_shift_right(aligned[word], aligned[word - 1], down) & 0xffff;
    }
    a[0] = decode_pair<mul1>(states[0], states[1], m);
    a[2] = decode_pair<mul1>(states[2], states[3], m);
    a[1] = decode_pair<mul1>(states[4], states[5], m);
    a[3] = decode_pair<mul1>(states[6], states[7], m);
}

template <int rate2, bool mul1> struct Trellis {
    static constexpr bool rotated = true;
    static constexpr int compiled_tiles = trellis_token_tiles;
    static constexpr bool short_steps = false;
    static constexpr int tile_bytes = 16 * rate2;  // of 16 x 16 weights
    static constexpr int stage_bytes = 4 * tile_bytes;
    EXL_HOST_DEVICE static constexpr int spare_bytes(int) { return 0; }
    EXL_DEVICE static constexpr float unit(int) { return 1.0f; }

    // A step is four tiles along K; of each, the group's tiles along N lie side by side. In a stage the four follow
    // each other. N is padded to a block's tiles.
    template <int tiles> struct Source {
        static constexpr int line = tiles * rate2, all = 4 * line, rounds = (all + group_size - 1) / group_size;
        const uint8_t* from[rounds];
        int64_t step_stride;
        int steps;

        EXL_DEVICE Source(const Problem& problem, const Work<tiles>& work) {
            const Projection& of = problem.projections[work.chosen];
            const int across = (of.tiles + tiles_of_block - 1) / tiles_of_block * tiles_of_block;
            const int64_t tile_stride = static_cast<int64_t>(across) * tile_bytes;
            step_stride = 4 * tile_stride;
#pragma unroll
            for (int i = 0; i < rounds; i++) {
                const int piece = i * group_size + lane();
                from[i] = of.data + work.first_step * step_stride + piece / line * tile_stride +
                          work.tile(0) * static_cast<int64_t>(tile_bytes) + piece % line * 16;
            }
            steps = work.steps;
        }
        EXL_DEVICE void issue(int ahead, uint8_t* stage, int number) const {
#pragma unroll
            for (int i = 0; i < rounds; i++)
                if ((i + 1) * group_size <= all || i * group_size + lane() < all)
                    copy_async(stage + (i * group_size + lane()) * 16, from[i] + ahead * step_stride, number < steps);
        }
        EXL_DEVICE void advance() {
#pragma unroll
            for (int i = 0; i < rounds; i++) from[i] += record_steps * step_stride;
        }
    };

    template <int tiles> struct State {
        EXL_DEVICE State(const Problem& problem, uint8_t*) : multiplier{problem.factor, problem.addend} {}
        Multiplier multiplier;
    };

    template <int x_row_bytes, int token_tiles, int tiles>
    EXL_DEVICE static void multiply(Sums<token_tiles>& sums, State<tiles>& state, const Source<tiles>&, int,
                                    const uint8_t* stages, const uint8_t* x) {
#pragma unroll
        for (int s = 0; s < step_columns / 16; s++) {
            uint32_t a[tiles][4];
#pragma unroll
            for (int r = 0; r < tiles; r++)
                decode_tile<rate2, mul1>(reinterpret_cast<const uint32_t*>(stages + (s * tiles + r) * tile_bytes),
                                         lane(), state.multiplier, a[r]);
#pragma unroll
            for (int n = 0; n < token_tiles; n++) {
                const uint8_t* from = x + n * 8 * x_row_bytes + s * 32 + lane() % 4 * 4;
                const uint32_t b[2] = {*reinterpret_cast<const uint32_t*>(from),
                                       *reinterpret_cast<const uint32_t*>(from + 16)};
#pragma unroll
                for (int r = 0; r < tiles; r++) mma_f16(sums.values[r][n], a[r], b);
            }
        }
    }
};

constexpr int expand_threads = 128;

// A group of lanes takes a tile: rows of the output are columns of the tile.
template <int rate2, bool mul1> EXL_KERNEL(expand_threads)
expand_trellis(Tiles tiles, Multiplier m, exl_expand_args args) {
    const int across = static_cast<int>(blockIdx.x) * (expand_threads / group_size) + group();
    const int along = static_cast<int>(blockIdx.y);
    if (across >= tiles.across) return;
    uint32_t a[4];
    const int64_t tile = static_cast<int64_t>(along) * tiles.across + across;
    decode_tile<rate2, mul1>(reinterpret_cast<const uint32_t*>(tiles.data + tile * 16 * rate2), lane(), m, a);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int64_t row = across * tile_rows + lane() / 4 + i % 2 * 8,
                      column = along * 16 + lane() % 4 * 2 + i / 2 * 8;
        *reinterpret_cast<uint32_t*>(static_cast<half*>(args.out) + row * args.out_stride + column) = a[i];
    }
}

}  // namespace gemm
}  // namespace exl
