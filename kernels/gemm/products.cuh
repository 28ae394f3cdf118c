// The loop that all weight families share: tiles of weights stream past a chunk of activations in shared memory.
//
// A Format says how a step (16 rows x 64 columns of weights) is fetched and multiplied:
//
//     stage_bytes          shared memory of one tile's step
//     Source               one per group of lanes: where its tiles are; issue(at, slot) starts the copies of step `at`
//     Carry                what a tile keeps from step to step
//     multiply(sums, carry, first_of_record, stages, x)
//     unit(i)              what the sums [tile][tokens][i] are to be multiplied by at the end
#pragma once

#include "exl/async_copy.h"
#include "exl/dependent_launch.h"
#include "exl/half.h"
#include "exl/matrix.h"
#include "gemm/outputs.cuh"
#include "gemm/problem.h"

namespace exl {
namespace gemm {

// Shared memory of a block. Rows of x are 32 bytes apart modulo 128, so that the 8-byte reads of 4 rows x 4 lanes touch
// all banks once.
template <class Format, int token_tiles> struct Plan {
    static constexpr int tokens = 8 * token_tiles;
    // A chunk of x is fetched while the one before is used. What is issued at a step has arrived stages - 1 steps later.
    static constexpr int chunk_steps = token_tiles <= 2 ? 4 : 2;
    static constexpr int stages = chunk_steps == 4 ? 4 : 3;
    static_assert(stages - 1 <= chunk_steps, "a chunk arrives before it is used");
    // Constant slots save instructions where a step is short; where sums fill the registers, a loop saves those.
    static constexpr int unrolled = token_tiles <= 2 ? record_steps : 1;
    static constexpr int row_bytes = chunk_steps * step_columns * 2 + 32;
    static constexpr int chunk_bytes = tokens * row_bytes;
    static constexpr int ring_bytes = stages * tiles_per_group * Format::stage_bytes;
    static constexpr int shared_bytes = 2 * chunk_bytes + groups * ring_bytes;
    static_assert(row_bytes % 128 == 32, "rows of x fall on different banks");
    static_assert(shared_bytes <= 64 * 1024, "the least that devices have");
};

// Starts the copies of one chunk of x: `tokens` rows from `first_row`, columns from `column` on; zeros outside.
template <class P> EXL_DEVICE void issue_chunk(const Problem& problem, uint8_t* chunk, int first_row, int column) {
    constexpr int pieces = P::chunk_steps * step_columns / 8;
    static_assert(P::tokens * pieces % threads == 0, "every thread copies the same number of pieces");
#pragma unroll
    for (int i = 0; i < P::tokens * pieces / threads; i++) {
        const int piece = i * threads + static_cast<int>(threadIdx.x);
        const int row = piece / pieces, at = column + piece % pieces * 8;
        const bool inside = first_row + row < problem.rows && at < problem.cols;
        copy_async(chunk + row * P::row_bytes + piece % pieces * 16,
                   problem.x + (first_row + row) * problem.x_stride + at, inside);
    }
}

template <class Format, int token_tiles> EXL_DEVICE void multiply_block(const Problem& problem, uint8_t* memory) {
    using P = Plan<Format, token_tiles>;
    const Work work = find_work(problem);
    if (work.steps <= 0) return;  // another projection has more slices
    uint8_t* ring = memory + 2 * P::chunk_bytes + group() * P::ring_bytes;
    const int first_row = static_cast<int>(blockIdx.z) * P::tokens;
    const uint8_t* x_of_lane = memory + lane() / 4 * P::row_bytes;

    typename Format::Source source(problem, work);
    typename Format::Carry carry[tiles_per_group];
    Sums<token_tiles> sums = {};
    const auto issue = [&](int ahead, int slot) {
        source.issue(ahead, ring + slot * tiles_per_group * Format::stage_bytes);
    };

#pragma unroll
    for (int i = 0; i < P::stages - 1; i++) {
        if (i < work.steps) issue(i, i);
        copy_async_commit();
    }
    wait_for_previous_kernel();
    issue_chunk<P>(problem, memory, first_row, work.first_step * step_columns);
    copy_async_commit();
    copy_async_wait<0>();

    const bool alone = !problem.split || work.slices == 1;
    int slice_end = work.slice_steps;
    for (int base = 0; base < work.steps; base += record_steps) {
#pragma unroll(P::unrolled)
        for (int i = 0; i < record_steps; i++) {
            const int step = base + i;
            if (step >= work.steps) break;
            copy_async_wait<P::stages - 2>();
            uint8_t* chunk = memory + (step / P::chunk_steps % 2) * P::chunk_bytes;
            if (i % P::chunk_steps == 0) {
                __syncthreads();
                const int next = step + P::chunk_steps;
                if (next < work.steps)
                    issue_chunk<P>(problem, memory + (next / P::chunk_steps % 2) * P::chunk_bytes, first_row,
                                   (work.first_step + next) * step_columns);
            } else {
                sync_warp();
            }
            if (step + P::stages - 1 < work.steps)
                issue(i + P::stages - 1, (P::stages == 4 ? i + 3 : step + P::stages - 1) % P::stages);
            copy_async_commit();
            const int slot = P::stages == 4 ? i : step % P::stages;
            Format::template multiply<P::row_bytes>(
                sums, carry, i == 0, ring + slot * tiles_per_group * Format::stage_bytes,
                x_of_lane + (chunk - memory) + i % P::chunk_steps * step_columns * 2);
        }
        source.advance();
        const int done = base + record_steps;
        if (alone && (done == slice_end || done >= work.steps)) {
            fold_slice(problem, sums, slice_end == work.slice_steps, done >= work.steps);
            slice_end += work.slice_steps;
        }
    }
    copy_async_wait<0>();
    let_next_kernel_start();
    if (alone || add_slices(problem, sums, first_row, work.slices)) write_all<Format>(problem, work, sums, first_row);
}

}  // namespace gemm
}  // namespace exl
