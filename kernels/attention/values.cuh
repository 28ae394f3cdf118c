// Values weighted with probabilities: each group of lanes a part of the features, all tokens of the page.
#pragma once

#include "attention/scores.cuh"

namespace exl {
namespace attention {

// The columns of 8 features that a group of lanes computes. Where they cannot be shared out evenly the last groups
// compute columns of their neighbours once more, because all groups of a wave must come to a matrix product together,
// and do not own them. Packed values are shared out by whole quads' numbers: at most one group of 32 is split.
template <int dim> struct Columns {
    static constexpr int total = dim / 8;
    static constexpr int count = dim == 80 ? 3 : dim == 96 ? 4 : (total + num_groups - 1) / num_groups;

    EXL_DEVICE static int first() {
        const int wanted = group() * count;
        return wanted < total - count ? wanted : total - count;
    }
    EXL_DEVICE static bool owns(int column) { return column >= group() * count && column < total; }
};

template <int dim> struct Outputs {
    float o[Columns<dim>::count][4];

    EXL_DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < Columns<dim>::count; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) o[i][j] = 0.0f;
    }
};

// The probabilities of 16 tokens as an operand.
EXL_DEVICE void load_weights(uint32_t (&a)[4], const half* weights, int token) {
    const int matrix = lane() / 8, vector = lane() % 8 + matrix % 2 * 8;
    load_matrix(a, weights + vector * weight_stride + token + matrix / 2 * 8);
}

// weights: of the tile's first token on.
template <int dim> EXL_DEVICE void weigh_half(const uint8_t* stage, const half* weights, Outputs<dim>& out) {
    using Tile = TokenTile<dim, kv::half_bits>;
    const uint8_t* from = stage + lane() * Tile::stride + Columns<dim>::first() * 16;
#pragma unroll
    for (int token = 0; token < Tile::tokens; token += 32) {
        uint32_t a[2][4];
        load_weights(a[0], weights, token);
        load_weights(a[1], weights, token + 16);
#pragma unroll
        for (int i = 0; i < Columns<dim>::count; i++) {
            uint32_t b[4];
            load_matrix_transposed(b, from + token * Tile::stride + i * 16);
            const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
            mma_f16(out.o[i], a[0], first);
            mma_f16(out.o[i], a[1], second);
        }
    }
}

// count: tokens of the tile that hold values; scales behind them may be anything.
template <int dim, int code_bits>
EXL_DEVICE void weigh_packed(const uint8_t* stage, const half* weights, int count, Outputs<dim>& out) {
    using Tile = TokenTile<dim, code_bits>;
    using Unpack = Codes<code_bits>;
    constexpr int columns = Columns<dim>::count, of_group = columns < 4 ? columns : 4;
    const int first = Columns<dim>::first(), g = lane() / 4, t = lane() % 4;
    const uint32_t magic = opaque(Unpack::magic_bits);
    const half* scales = reinterpret_cast<const half*>(stage + Tile::scales);
    const auto scale = [&](int token, int group) {
        return token < count ? scales[token * Tile::groups + group] : half_from_bits(0);
    };
#pragma unroll 1
    for (int block = 0; block < Tile::tokens; block += 16) {
        uint32_t a[4];
        load_weights(a, weights, block);
#pragma unroll
        for (int part = 0; part < columns / of_group; part++) {
            const int group = first / 4 + part;
            Unpack codes[2];
            half2 factors[2];
#pragma unroll
            for (int side = 0; side < 2; side++) {
                const int token = block + 2 * t + 8 * side;
                const uint8_t* row = stage + token * Tile::stride + group * kv::group_bytes(code_bits);
                codes[side].load_values(row, row + Tile::stride, g);
                if constexpr (of_group < 4) codes[side].skip(first % 4);
                factors[side] = pair(scale(token, group), scale(token + 1, group));
            }
#pragma unroll
            for (int i = 0; i < of_group; i++) {
                const uint32_t b[2] = {bits(multiply2(codes[0].value(i, magic), factors[0])),
                                       bits(multiply2(codes[1].value(i, magic), factors[1]))};
                mma_f16(out.o[part * of_group + i], a, b);
            }
        }
    }
}

template <int dim, bool packed>
EXL_DEVICE void weigh_tile(int value_bits, const uint8_t* stage, const half* weights, int count, Outputs<dim>& out) {
    by_bits<packed>(value_bits, [&](auto b) {
        if constexpr (kv::is_packed(b.value))
            weigh_packed<dim, b.value>(stage, weights, count, out);
        else
            weigh_half<dim>(stage, weights, out);
    });
}

}  // namespace attention
}  // namespace exl
