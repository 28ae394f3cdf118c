// The output side of Trellis weights, y = Hd(z) * svh + bias: a block's 8 tiles are the 128 columns that one Hadamard
// matrix mixes, so z never leaves the block.
#pragma once

#include "exl/hadamard.h"
#include "gemm/outputs.cuh"

namespace exl {
namespace gemm {

static_assert(tiles_of_block * tile_rows == hadamard_size, "a block holds what is rotated together");

// Floats from token to token: lanes of one store fall on different banks.
constexpr int rotated_line = hadamard_size + 4;
EXL_LAYOUT int rotated_bytes(int token_tiles) { return 8 * token_tiles * rotated_line * 4; }

// The sums of all groups meet in shared memory, [token][128 rows]; then each group rotates every few tokens.
template <class Format, int token_tiles>
EXL_DEVICE void write_rotated(const Problem& problem, const Work<Sums<token_tiles>::tiles>& work,
                              const Sums<token_tiles>& sums, int first_row, uint8_t* memory) {
    float* z = reinterpret_cast<float*>(memory);
    const int g = lane() / 4, t = lane() % 4;
    __syncthreads();  // the chunks that lie there have been read
    Sums<token_tiles>::for_each([&](int r, int n, int i) {
        const int row = (group() * Sums<token_tiles>::tiles + r) * tile_rows + g + i / 2 * 8;
        z[(8 * n + 2 * t + i % 2) * rotated_line + row] = sums.values[r][n][i] * Format::unit(i);
    });
    __syncthreads();
    const Projection& out = problem.projections[work.chosen];
    const int left = problem.rows - first_row, count = left < 8 * token_tiles ? left : 8 * token_tiles;
    const int first = (work.first_tile - group() * Sums<token_tiles>::tiles) * tile_rows + 4 * lane();
    for (int token = group(); token < count; token += groups_of_block(token_tiles)) {
        const float4 four = *reinterpret_cast<const float4*>(z + token * rotated_line + 4 * lane());
        float values[4] = {four.x, four.y, four.z, four.w};
        rotate128(values);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = first + i;
            if (row >= out.rows) continue;
            const float scale = to_float(out.svh[row]);
            write(out, first_row + token, row,
                  out.bias ? fused_multiply_add(values[i], scale, out.bias[row]) : values[i] * scale);
        }
    }
}

}  // namespace gemm
}  // namespace exl
