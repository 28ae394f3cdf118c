// Matrix products with dense weights, row-major (N, K) as files and vendor libraries have them; see linear.h.
//
//     argument     shape       type, layout
//     x            (rows, K)   fp16, stride in elements, pointer and stride multiples of 16 bytes
//     data         (N, K)      fp16, bf16 or fp32, stride in elements, pointer and stride multiples of 16 bytes
//     out          (rows, N)   fp16 or fp32
//
// Limits: K a multiple of 8; K and N at most 2^24. Work split and sums as in group_affine.h; weights go
// from memory to registers, 4 columns of a row at a time. bf16 weights are multiplied exactly: x is split into two bf16 numbers that add up to it. fp32 weights are split
// the same way, into three bf16 numbers, and multiplied by both of x: 24 bits.
//
// Bound: memory for few rows. Oracle: float64 (tests/kernels/test_dense.py).
#pragma once

#include "gemm/linear.h"

typedef struct exl_dense {
    const void* data;
    int32_t rows;  // N
    int32_t cols;  // K
    exl_dtype dtype;
    int64_t stride;  // elements
} exl_dense;

typedef struct exl_dense_projection {
    exl_dense weight;
    exl_output output;
} exl_dense_projection;

typedef struct exl_dense_linear_args {
    const void* x;
    int64_t x_stride;  // elements
    int32_t rows;
    int32_t num_projections;
    exl_activation activation;  // not none: two projections of one shape and type
    exl_dense_projection projections[exl_max_projections];
    exl_workspace workspace;
} exl_dense_linear_args;

// Projections of one type share a launch.
EXL_API exl_status exl_dense_linear(const exl_dense_linear_args* args, exl_stream stream);
// What the launch needs of partial_bytes and num_tickets; 0 where it needs none. Pointers in args are not looked at.
EXL_API exl_status exl_dense_linear_workspace(const exl_dense_linear_args* args, int64_t* partial_bytes,
                                              int64_t* num_tickets);
