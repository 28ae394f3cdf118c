// The loop that all weight families share: tiles of weights stream past a chunk of activations in shared memory.
//
// A Format says how a step (16 rows x 64 columns of weights) is fetched and multiplied:
//
//     stage_bytes      shared memory of one tile's step
//     Source<tiles>    one per group of lanes: where its tiles are; issue(ahead, stage, number) starts the copies of a
//                      step, counted from the current record's first and from the block's first; behind the end nothing;
//                      advance() goes to the next record
//     compiled_tiles   the sum of the values of Shape::token_tiles that are compiled
//     short_steps      true where the instructions around a step count
//     spare_bytes(n)   shared memory behind the stages of a step of n tiles that nobody reads
//     State<tiles>     what is kept in registers from step to step; made with shared memory of 16 bytes a thread to use
//     multiply(sums, state, source, i, stages, x): step i of the record; x: the lane's row at the step's first column
//     rotated          true where a block's 128 outputs are rotated and scaled before they are written
//     unit(i)          what the sums [tile][tokens][i] are to be multiplied by at the end
#pragma once

#include "exl/async_copy.h"
#include "exl/dependent_launch.h"
#include "exl/half.h"
#include "exl/matrix.h"
#include "gemm/outputs.cuh"
#include "gemm/problem.h"
#include "gemm/rotated_outputs.cuh"

namespace exl {
namespace gemm {

// Shared memory of a block. Rows of x are 32 bytes apart modulo 128, so that the 8-byte reads of 4 rows x 4 lanes touch
// all banks once.
template <class Format, int token_tiles> struct Plan {
    static constexpr int tokens = 8 * token_tiles, tiles = tiles_of_group(token_tiles);
    static constexpr int groups = groups_of_block(token_tiles), threads = threads_of_block(token_tiles);
    // A chunk of x is fetched while the one before is used. What is issued at a step has arrived stages - 1 steps later.
    static constexpr int chunk_steps = token_tiles <= 2 ? 4 : 2;
    static constexpr int stages = chunk_steps == 4 ? 4 : 3;
    static_assert(stages - 1 <= chunk_steps, "a chunk arrives before it is used");
    // Constant slots save instructions where a step is short; elsewhere a loop saves registers and code.
    static constexpr int unrolled = token_tiles == 1 && Format::short_steps ? record_steps : 1;
    static constexpr int row_bytes = chunk_steps * step_columns * 2 + 32;
    static constexpr int chunk_bytes = tokens * row_bytes;
    static constexpr int stage_bytes = tiles * Format::stage_bytes + Format::spare_bytes(tiles);
    static constexpr int ring_bytes = stages * stage_bytes;
    static constexpr int shared_bytes = 2 * chunk_bytes + groups * ring_bytes;
    static_assert(row_bytes % 128 == 32, "rows of x fall on different banks");
    static_assert(shared_bytes <= 64 * 1024, "the least that devices have");

    // A step's stage in the ring; step i of an unrolled record is at a constant place.
    EXL_DEVICE static int slot(int i, int step) { return (stages == record_steps ? i : step) % stages; }
};

// The chunks of x: every thread copies the same 8 columns of several rows, zeros where there are none.
template <class P> struct Chunks {
    static constexpr int pieces = P::chunk_steps * step_columns / 8, rows_at_once = P::threads / pieces;
    static_assert(P::threads % pieces == 0 && P::tokens % rows_at_once == 0, "every thread copies the same columns");
    const half* from;  // of the chunk to be copied next
    int64_t stride;
    int to, rows, columns;  // byte in the chunk; rows and columns that exist from here on

    EXL_DEVICE Chunks(const Problem& problem, const half* x, int first_row, int first_column) {
        const int row = static_cast<int>(threadIdx.x) / pieces, piece = static_cast<int>(threadIdx.x) % pieces;
        from = x + (first_row + row) * problem.x_stride + first_column + piece * 8;
        stride = problem.x_stride * rows_at_once;
        to = row * P::row_bytes + piece * 16;
        rows = problem.rows - first_row - row;
        columns = problem.cols - first_column - piece * 8;
    }
    EXL_DEVICE void issue(uint8_t* chunk) {
#pragma unroll
        for (int i = 0; i < P::tokens / rows_at_once; i++)
            copy_async(chunk + to + i * rows_at_once * P::row_bytes, from + i * stride,
                       columns > 0 && i * rows_at_once < rows);
        from += P::chunk_steps * step_columns;
        columns -= P::chunk_steps * step_columns;
    }
};

template <class Format, int token_tiles> EXL_DEVICE void multiply_block(const Problem& problem, uint8_t* memory) {
    using P = Plan<Format, token_tiles>;
    const auto work = find_work<P::tiles>(problem);
    if (work.steps <= 0) return;  // another projection has more slices
    uint8_t* ring = memory + 2 * P::chunk_bytes + group() * P::ring_bytes;
    const int first_row = static_cast<int>(blockIdx.z) * P::tokens;
    const uint8_t* x_of_lane = memory + lane() / 4 * P::row_bytes;

    typename Format::template Source<P::tiles> source(problem, work);
    typename Format::template State<P::tiles> state(problem, memory + P::chunk_bytes);
    Sums<token_tiles> sums = {};

#pragma unroll
    for (int i = 0; i < P::stages - 1; i++) {
        source.issue(i, ring + i * P::stage_bytes, i);
        copy_async_commit();
    }
    wait_for_previous_kernel();
    Chunks<P> chunks(problem, problem.projections[work.chosen].x, first_row, work.first_step * step_columns);
    int current = P::chunk_bytes;  // where the chunk of the current step is: 0 from the first step on
    chunks.issue(memory);
    copy_async_commit();
    copy_async_wait<0>();

    const bool alone = !problem.split || work.slices == 1;
    for (int slice = 0; slice < work.steps; slice += work.slice_steps) {
        const int slice_end = slice + work.slice_steps < work.steps ? slice + work.slice_steps : work.steps;
        for (int base = slice; base < slice_end; base += record_steps) {
#pragma unroll(P::unrolled)
            for (int i = 0; i < record_steps; i++) {
                const int step = base + i, last = step + P::stages - 1;
                if (step >= slice_end) break;
                copy_async_wait<P::stages - 2>();
                if (i % P::chunk_steps == 0) {
                    __syncthreads();
                    chunks.issue(memory + current);
                    current = P::chunk_bytes - current;
                } else {
                    sync_warp();
                }
                source.issue(i + P::stages - 1, ring + P::slot(i + P::stages - 1, last) * P::stage_bytes, last);
                copy_async_commit();
                Format::template multiply<P::row_bytes>(sums, state, source, i,
                                                        ring + P::slot(i, step) * P::stage_bytes,
                                                        x_of_lane + current + i % P::chunk_steps * step_columns * 2);
            }
            source.advance();
        }
        if (alone) fold_slice(problem, sums, slice == 0, slice_end == work.steps);
    }
    copy_async_wait<0>();
    let_next_kernel_start();
    if (!alone && !add_slices(problem, sums, first_row, work.slices)) return;
    if constexpr (Format::rotated) {
        static_assert(P::shared_bytes >= rotated_bytes(token_tiles), "sums take the place of chunks and stages");
        write_rotated<Format>(problem, work, sums, first_row, memory);
    } else {
        write_all<Format>(problem, work, sums, first_row);
    }
}

}  // namespace gemm
}  // namespace exl
