// A launch as the kernels see it, and what one block of it does.
#pragma once

#include "exl/half.h"
#include "exl/portability.h"
#include "exl/types.h"
#include "exl/warp.h"
#include "gemm/linear.h"
#include "layouts/group_affine.h"

namespace exl {
namespace gemm {

using layouts::record_steps;
using layouts::step_columns;
using layouts::tile_rows;

constexpr int tiles_of_block = 8;
// Tiles of a group of 32 lanes: what they share is paid once, and their sums have to fit the registers.
EXL_LAYOUT int tiles_of_group(int token_tiles) { return token_tiles <= 2 ? 4 : 2; }
EXL_LAYOUT int groups_of_block(int token_tiles) { return tiles_of_block / tiles_of_group(token_tiles); }
EXL_LAYOUT int threads_of_block(int token_tiles) { return groups_of_block(token_tiles) * group_size; }

// One matrix and where its product goes.
struct Projection {
    const half* x;
    const uint8_t* data;
    int64_t tile_stride;  // bytes
    int rows, tiles;      // N and tiles of 16
    int first_block;      // along the grid's x
    int slice_steps, slices;
    float* out_f32;
    half* out_f16;
    int64_t out_stride;
    const float* bias;
    const half* svh;  // of a trellis
    int add;
};

struct Problem {
    int64_t x_stride;
    int rows, cols, steps;
    int num_projections;
    int split;  // 1: one slice a block, added by the last to arrive; 0: a block takes all slices
    int slots;  // partial sums that a block of the grid's x and z keeps
    exl_activation activation;
    uint32_t factor, addend;  // of a trellis codebook
    float4* partials;
    uint32_t* tickets;
    Projection projections[exl_max_projections];
};

// What a group of lanes does: `tiles` tiles of one projection, or with an activation half as many of each of two.
template <int tiles> struct Work {
    int chosen, first_tile;
    bool gated;
    int first_step, steps, slice_steps, slices;

    EXL_DEVICE int projection(int r) const { return gated ? r / (tiles / 2) : chosen; }
    EXL_DEVICE int tile(int r) const { return first_tile + (gated ? r % (tiles / 2) : r); }
    // Where this group's part of K of tile r starts; behind the last tile that one again.
    EXL_DEVICE const uint8_t* address(const Problem& problem, int r, int64_t from_start) const {
        const Projection& of = problem.projections[projection(r)];
        const int index = tile(r) < of.tiles ? tile(r) : of.tiles - 1;
        return of.data + index * of.tile_stride + from_start;
    }
};

template <int tiles> EXL_DEVICE Work<tiles> find_work(const Problem& problem) {
    Work<tiles> work;
    const int block = static_cast<int>(blockIdx.x), slice = static_cast<int>(blockIdx.y);
    work.gated = problem.activation != exl_no_activation;
    work.chosen = 0;
    for (int i = 1; i < problem.num_projections; i++)
        if (!work.gated && block >= problem.projections[i].first_block) work.chosen = i;
    const Projection& first = problem.projections[work.chosen];
    work.first_tile =
        ((block - first.first_block) * (tiles_of_block / tiles) + group()) * (work.gated ? tiles / 2 : tiles);
    work.slice_steps = first.slice_steps;
    work.slices = first.slices;
    work.first_step = problem.split ? slice * first.slice_steps : 0;
    const int left = problem.steps - work.first_step;
    work.steps = problem.split && left > first.slice_steps ? first.slice_steps : left;
    return work;
}

// Steps of a slice of K: a function of the matrix alone. As long as possible while a matrix with this N still gives
// some 512 blocks; at least 2 records.
inline int slice_steps_of(int rows, int steps) {
    constexpr int wanted_blocks = 512, least = 2 * record_steps;
    constexpr int block_rows = tiles_of_block * tile_rows;
    const int row_blocks = (rows + block_rows - 1) / block_rows;
    int slice = (steps + record_steps - 1) / record_steps * record_steps;
    while (slice > least && row_blocks * ((steps + slice - 1) / slice) < wanted_blocks) {
        slice = (slice / 2 + record_steps - 1) / record_steps * record_steps;
        if (slice < least) slice = least;
    }
    return slice;
}

// A family's part of a projection: its weights and its output.
struct Matrix {
    const void* data;
    int64_t tile_stride;
    int rows, cols;
    const exl_output* output;
    int64_t x_offset = 0;  // elements from the call's x to this projection's
    const void* svh = nullptr;
};

// What all families are called with.
struct Call {
    static constexpr int all_sizes = 1 | 2 | 4 | 8;
    const void* x;  // of the first projection
    int64_t x_stride;
    int rows;
    exl_activation activation;
    int count;
    const exl_workspace* workspace;
    int token_tiles = all_sizes;  // the sums of the values of Shape::token_tiles that are compiled
};

struct Shape {
    int token_tiles;  // 1, 2, 4 or 8
    dim3 grid;        // blocks of rows of all projections, slices, blocks of tokens
    int64_t partial_bytes, num_tickets;
};

// Refuses sizes that no family supports; `projections[i].` stands in front of the names of what belongs to one.
exl_status check_sizes(const Call& call, const Matrix* matrices);
// Refuses pointers, strides and types.
exl_status check_memory(const Call& call, const Matrix* matrices, const Shape& shape);
// The launch for checked sizes; fills the problem but for pointers to weights, x, outputs and scratch.
Shape plan(const Call& call, const Matrix* matrices, Problem& problem);
// The pointers that plan left out.
void bind(const Call& call, const Matrix* matrices, Problem& problem);

}  // namespace gemm
}  // namespace exl
