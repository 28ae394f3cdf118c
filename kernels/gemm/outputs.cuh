// From sums in registers to the output: slices of K added in order, bias, activation, residual.
#pragma once

#include "exl/activation.h"
#include "exl/ticket.h"
#include "exl/warp.h"
#include "gemm/problem.h"

namespace exl {
namespace gemm {

// The accumulators of tiles of 16 rows times 8 tokens: lane 4 g + t holds rows g, g, g + 8, g + 8 and tokens 2t, 2t + 1.
template <int token_tiles> struct Sums {
    static constexpr int tiles = tiles_of_group(token_tiles), all = tiles * token_tiles;
    static constexpr int threads = threads_of_block(token_tiles);
    float values[tiles][token_tiles][4];

    template <class F> EXL_DEVICE static void for_each(F f) {
#pragma unroll
        for (int r = 0; r < tiles; r++)
#pragma unroll
            for (int n = 0; n < token_tiles; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) f(r, n, i);
    }
};

// Writes one element of the product: row `row` of the matrix, token `token`.
EXL_DEVICE void write(const Projection& projection, int token, int row, float value) {
    const int64_t at = token * projection.out_stride + row;
    if (projection.out_f16)
        projection.out_f16[at] = to_half(value);
    else if (projection.add)
        projection.out_f32[at] += value;
    else
        projection.out_f32[at] = value;
}

template <class Format, int token_tiles> EXL_DEVICE void write_all(const Problem& problem,
                                                                   const Work<Sums<token_tiles>::tiles>& work,
                                                                   const Sums<token_tiles>& sums, int first_row) {
    const int g = lane() / 4, t = lane() % 4;
    constexpr int half_of = Sums<token_tiles>::tiles / 2;
    Sums<token_tiles>::for_each([&](int r, int n, int i) {
        const int token = first_row + 8 * n + 2 * t + i % 2, row = work.tile(r) * tile_rows + g + i / 2 * 8;
        if (token >= problem.rows || row >= problem.projections[work.projection(r)].rows) return;
        const float value = sums.values[r][n][i] * Format::unit(i);
        if (!work.gated) {
            const Projection& out = problem.projections[work.projection(r)];
            write(out, token, row, out.bias ? value + out.bias[row] : value);
        } else if (r < half_of) {
            float gate = value, up = sums.values[r + half_of][n][i] * Format::unit(i);
            if (problem.projections[0].bias) gate += problem.projections[0].bias[row];
            if (problem.projections[1].bias) up += problem.projections[1].bias[row];
            const Projection& out = problem.projections[0];
            const float product = activate(problem.activation, gate) * up;
            const int64_t at = token * out.out_stride + row;
            if (out.out_f16)
                out.out_f16[at] = to_half(product);
            else
                out.out_f32[at] = product;
        }
    });
}

// Partial sums lie as the threads hold them: [block][slot][value of 4][thread].
template <int token_tiles> EXL_DEVICE float4* partials_of_block(const Problem& problem) {
    constexpr int values = Sums<token_tiles>::all, threads = Sums<token_tiles>::threads;
    const int block = static_cast<int>(blockIdx.z * gridDim.x + blockIdx.x);
    return problem.partials + static_cast<int64_t>(block) * problem.slots * (values * threads) + threadIdx.x;
}

// A block that takes all slices keeps their sum in its slot: as fast as registers would be, for a slice is long, and
// there are none to spare.
template <int token_tiles>
EXL_DEVICE void fold_slice(const Problem& problem, Sums<token_tiles>& sums, bool first, bool last) {
    constexpr int threads = Sums<token_tiles>::threads;
    float4* kept = partials_of_block<token_tiles>(problem);
#pragma unroll
    for (int v = 0; v < Sums<token_tiles>::all; v++) {
        float (&sum)[4] = sums.values[v / token_tiles][v % token_tiles];
        const float4 before = first ? make_float4(0, 0, 0, 0) : kept[v * threads];
        sum[0] = before.x + sum[0], sum[1] = before.y + sum[1], sum[2] = before.z + sum[2], sum[3] = before.w + sum[3];
        if (last) continue;
        kept[v * threads] = make_float4(sum[0], sum[1], sum[2], sum[3]);
        sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
    }
}

// Leaves the sums of this slice for the block that arrives last, which gets true and the sums of all slices. Tokens that
// do not exist are left out.
template <int token_tiles>
EXL_DEVICE bool add_slices(const Problem& problem, Sums<token_tiles>& sums, int first_row, int slices) {
    constexpr int values = Sums<token_tiles>::all, threads = Sums<token_tiles>::threads;
    float4* partials = partials_of_block<token_tiles>(problem);
    float4* mine = partials + blockIdx.y * (values * threads);
    const int first_token = first_row + lane() % 4 * 2;
#pragma unroll
    for (int v = 0; v < values; v++) {
        const float (&sum)[4] = sums.values[v / token_tiles][v % token_tiles];
        if (first_token + v % token_tiles * 8 < problem.rows)
            mine[v * threads] = make_float4(sum[0], sum[1], sum[2], sum[3]);
    }
    uint32_t* ticket = &problem.tickets[blockIdx.z * gridDim.x + blockIdx.x];
    if (!last_block_arrives(ticket, static_cast<uint32_t>(slices))) return false;
    sums = {};
    for (int slice = 0; slice < slices; slice++) {
        const float4* from = partials + slice * (values * threads);
#pragma unroll
        for (int v = 0; v < values; v++) {
            if (first_token + v % token_tiles * 8 >= problem.rows) continue;
            const float4 part = load_coherent(&from[v * threads]);
            float (&sum)[4] = sums.values[v / token_tiles][v % token_tiles];
            sum[0] += part.x, sum[1] += part.y, sum[2] += part.z, sum[3] += part.w;
        }
    }
    return true;
}

}  // namespace gemm
}  // namespace exl
