// Scores of 16 query vectors against a tile of keys, and their softmax over a page.
#pragma once

#include "attention/tile.cuh"
#include "exl/math.h"
#include "exl/matrix.h"

namespace exl {
namespace attention {

// Fragments of the 16 query vectors, for each 16 features.
template <int dim> struct Queries {
    uint32_t a[dim / 16][4];

    EXL_DEVICE void load(const exl_attention_args& args, const QueryTile& tile, int padded_dim) {
        const int g = lane() / 4, t = lane() % 4;
#pragma unroll
        for (int side = 0; side < 2; side++) {
            const int vector = g + 8 * side;
            const bool present = vector < tile.num_vectors();
            const half* q =
                static_cast<const half*>(args.q) +
                (present ? tile.row(vector) * args.q_stride + static_cast<int64_t>(tile.head(vector)) * padded_dim : 0);
            const uint32_t* words = reinterpret_cast<const uint32_t*>(q);
#pragma unroll
            for (int k = 0; k < dim / 16; k++) {
                a[k][side] = present ? words[8 * k + t] : 0;
                a[k][side + 2] = present ? words[8 * k + t + 4] : 0;
            }
        }
    }
};

// Scores of one group of lanes: a quarter of each tile's tokens, in blocks of 8, all tiles of a page.
template <int dim> struct Scores {
    static constexpr int tokens = tile_tokens(dim), tiles = exl_page_size / tokens;
    static constexpr int blocks = tokens / num_groups / 8;  // of a tile
    float s[tiles * blocks][4];

    EXL_DEVICE static int token(int block) {
        return block / blocks * tokens + group() * (tokens / num_groups) + block % blocks * 8 + lane() % 4 * 2;
    }

    // The newest tile stands last; a page's scores are complete after `tiles` pushes.
    EXL_DEVICE void push(const float (&newest)[blocks][4]) {
#pragma unroll
        for (int i = 0; i < tiles * blocks; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                s[i][j] = i + blocks < tiles * blocks ? s[i + blocks][j] : newest[i % blocks][j];
    }
};

template <int dim>
EXL_DEVICE void score_half(const uint8_t* stage, const Queries<dim>& q, float (&c)[Scores<dim>::blocks][4]) {
    using Tile = TokenTile<dim, kv::half_bits>;
    constexpr int blocks = Scores<dim>::blocks;
    const int matrix = lane() / 8;
    // Four 8 x 8 matrices at a time: two blocks of 16 features, or one of 32.
    const int token = group() * 8 * blocks + lane() % 8 + (blocks == 2 ? matrix / 2 * 8 : 0);
    const int feature = (blocks == 2 ? matrix % 2 : matrix) * 8;
    const uint8_t* from = stage + token * Tile::stride + feature * 2;
#pragma unroll
    for (int k = 0; k < dim / 16; k += blocks == 2 ? 1 : 2) {
        uint32_t b[4];
        load_matrix(b, from + k * 32);
        const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
        mma_f16(c[0], q.a[k], first);
        mma_f16(c[blocks - 1], q.a[blocks == 2 ? k : k + 1], second);
    }
}

template <int dim, int code_bits>
EXL_DEVICE void score_packed(const uint8_t* stage, const Queries<dim>& q, float (&c)[Scores<dim>::blocks][4]) {
    using Tile = TokenTile<dim, code_bits>;
    using Unpack = Codes<code_bits>;
    constexpr int blocks = Scores<dim>::blocks;
    const int first = group() * 8 * blocks + lane() / 4, t = lane() % 4;
    const uint32_t magic = opaque(Unpack::magic_bits);
    const half* scales = reinterpret_cast<const half*>(stage + Tile::scales);
#pragma unroll
    for (int block = 0; block < blocks; block++) {
        const int token = first + 8 * block;
#pragma unroll
        for (int group = 0; group < Tile::groups; group++) {
            Unpack codes;
            codes.load_key(stage + token * Tile::stride + group * kv::group_bytes(code_bits), t);
            const half2 scale = broadcast2(scales[token * Tile::groups + group]);
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const uint32_t b[2] = {bits(multiply2(codes.value(2 * k, magic), scale)),
                                       bits(multiply2(codes.value(2 * k + 1, magic), scale))};
                mma_f16(c[block], q.a[2 * group + k], b);
            }
        }
    }
}

template <int dim, bool packed> EXL_DEVICE void score_tile(int key_bits, const uint8_t* stage, const Queries<dim>& q,
                                                           float (&c)[Scores<dim>::blocks][4]) {
    by_bits<packed>(key_bits, [&](auto b) {
        if constexpr (kv::is_packed(b.value))
            score_packed<dim, b.value>(stage, q, c);
        else
            score_half<dim>(stage, q, c);
    });
}

// Numbers of the two vectors that a lane holds scores of, lane / 4 and lane / 4 + 8.
struct Pair {
    float of[2];
};

// Of four groups of lanes, for each vector.
struct Exchange {
    float peaks[num_groups][max_queries];
    float sums[num_groups][max_queries];
};

constexpr int weight_stride = exl_page_size + 8;  // halves; an odd number of 16 bytes

// cap * tanh(scale * s / cap), by 1 - 2 / (1 + e^2x): an absolute error of 2e-7 cap.
template <int dim> EXL_DEVICE void cap_scores(const exl_attention_args& args, Scores<dim>& scores) {
    const float twice = 2.0f * args.scale / args.softcap;
#pragma unroll
    for (int i = 0; i < Scores<dim>::tiles * Scores<dim>::blocks; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float rest = 2.0f * reciprocal_fast(1.0f + exp_fast(scores.s[i][j] * twice));
            scores.s[i][j] = fused_multiply_add(-args.softcap, rest, args.softcap);
        }
}

// Turns scores into probabilities relative to the page's peak (in base 2) and stores them, fp16, in weights; the sums of
// the groups go to the exchange, and are seen after the next barrier. Returns the peaks. `seen`: tokens of the page that
// each of the two vectors sees.
template <int dim> EXL_DEVICE Pair soften(const exl_attention_args& args, Scores<dim>& scores, const Span (&seen)[2],
                                          half* weights, Exchange& exchange) {
    constexpr float log2_e = 1.4426950408889634f, none = -INFINITY;
    constexpr int count = Scores<dim>::tiles * Scores<dim>::blocks;
    const int g = lane() / 4, t = lane() % 4;
    if (args.softcap > 0.0f) cap_scores(args, scores);
    const float factor = args.softcap > 0.0f ? log2_e : args.scale * log2_e;
    float peak[2] = {none, none};
#pragma unroll
    for (int i = 0; i < count; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int token = Scores<dim>::token(i) + j % 2, side = j / 2;
            const bool sees = token >= seen[side].begin && token < seen[side].end;
            scores.s[i][j] = sees ? scores.s[i][j] * factor : none;
            peak[side] = fmaxf(peak[side], scores.s[i][j]);
        }
#pragma unroll
    for (int side = 0; side < 2; side++) {
        peak[side] = warp_max<4>(peak[side]);
        if (t == 0) exchange.peaks[group()][g + 8 * side] = peak[side];
    }
    __syncthreads();
    Pair result;
#pragma unroll
    for (int side = 0; side < 2; side++) {
        float best = none;
        for (int i = 0; i < num_groups; i++) best = fmaxf(best, exchange.peaks[i][g + 8 * side]);
        result.of[side] = best == none ? 0.0f : best;
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < count; i++) {
            const half2 p = to_half2(exp2_fast(scores.s[i][2 * side] - result.of[side]),
                                     exp2_fast(scores.s[i][2 * side + 1] - result.of[side]));
            *reinterpret_cast<half2*>(weights + (g + 8 * side) * weight_stride + Scores<dim>::token(i)) = p;
            sum += to_float(low(p)) + to_float(high(p));
        }
        sum = warp_sum<4>(sum);
        if (t == 0) exchange.sums[group()][g + 8 * side] = sum;
    }
    return result;
}

EXL_DEVICE Pair page_sums(const Exchange& exchange) {
    Pair result;
#pragma unroll
    for (int side = 0; side < 2; side++) {
        float sum = 0.0f;
        for (int i = 0; i < num_groups; i++) sum += exchange.sums[i][lane() / 4 + 8 * side];
        result.of[side] = sum;
    }
    return result;
}

}  // namespace attention
}  // namespace exl
