// Products with Trellis weights (EXL3): y = Hd(xh What) * svh + bias, where xh = Hd(x * suh) comes from hadamard.h or the
// norm, one for each matrix; see linear.h for the rest.
//
//     linear     y (rows, N) from xh (projections, rows, padded K)
//     expand     What transposed as f16 (padded N, padded K), before both rotations and scales
//
//     argument   shape                           type, layout
//     x          (projections, rows, padded K)   fp16, 16-byte aligned, strides in elements and multiples of 8
//     data       [K/16][N/16] tiles, padded      the file's bytes: 16 bits times the rate each
//     svh        (padded N,)                     fp16
//     out        (rows, N)                       fp16 or fp32
//
// K and N are padded to multiples of 128. Hd is the orthonormal Hadamard matrix of blocks of 128: a block of lanes makes
// 128 columns of y, so the output is rotated, scaled and added to where it is made. Work split and sums as in
// group_affine.h.
//
// A tile of 16 x 16 weights is a ring of bits, 8 consecutive positions a lane, and those are the A fragment of a product:
//
//     position 8 L + j  =  column (L / 4) + 8 (j / 4), row 2 (L % 4) + j % 2 + 8 (j / 2 % 2)
//                          j = 0, 1: register 0;  2, 3: register 2;  4, 5: register 1;  6, 7: register 3
//
// Weights are the exact halves of the format. Oracle: exllama/formats/trellis.py (tests/kernels/test_trellis.py). Bound:
// integer arithmetic. For more than 32 rows a block of lanes decodes its weights once for every 32.
#pragma once

#include "gemm/embedding.h"
#include "gemm/linear.h"

typedef enum exl_codebook { exl_3inst = 0, exl_mcg = 1, exl_mul1 = 2 } exl_codebook;

typedef struct exl_trellis {
    const void* data;  // 16-byte aligned
    const void* svh;
    int32_t rows;  // N as the layer has it
    int32_t cols;  // K as the layer has it
    int32_t rate2;  // twice the bits of a weight: 2 to 16 in steps of 2; 3, 5, 7 with mul1
    exl_codebook codebook;
} exl_trellis;

typedef struct exl_trellis_projection {
    exl_trellis weight;
    exl_output output;
} exl_trellis_projection;

typedef struct exl_trellis_linear_args {
    const void* x;
    int64_t x_stride;  // from row to row
    int64_t x_step;  // from one projection's x to the next's
    int32_t rows;
    int32_t num_projections;
    exl_trellis_projection projections[exl_max_projections];
    exl_workspace workspace;
} exl_trellis_linear_args;

// Projections of one rate and codebook share a launch.
EXL_API exl_status exl_trellis_linear(const exl_trellis_linear_args* args, exl_stream stream);
EXL_API exl_status exl_trellis_linear_workspace(const exl_trellis_linear_args* args, int64_t* partial_bytes,
                                                int64_t* num_tickets);
EXL_API exl_status exl_trellis_expand(const exl_trellis* weight, const exl_expand_args* args, exl_stream stream);
