// RMSNorm of the residual stream, with the addition in front of it.
//
//     x = x + delta                                      where delta is given
//     out = half(x / sqrt(mean(x^2) + eps) * weight)
//
// and, in front of Trellis weights, instead of out, for each of num_rotations vectors suh:
//
//     out[i] = half(Hd(x / sqrt(mean(x^2) + eps) * weight * suh[i]))        Hd: Hadamard, blocks of 128 (exl/hadamard.h)
//
// One block a row; the row stays in registers between the two passes. The order of the sum depends on `width` alone.
// Bytes a row and column: 4 read, 2 written; with delta 6 read, 6 written. Oracle: reference.rms_norm.
#pragma once

#include "exl/portability.h"

enum { exl_max_rotations = 4 };

typedef struct exl_norm_args {
    float* x;  // (., x_stride) fp32, 16-byte aligned; changed where delta is given
    const void* delta;  // (rows, delta_stride) fp16 or null, 8-byte aligned
    const int32_t* row_index;  // (rows,) in device memory: row r reads x[row_index[r]]; null: x[r]. Not with delta
    const float* weight;  // (width,) 16-byte aligned
    void* out;  // (rows, out_stride) fp16, 8-byte aligned; not x nor delta
    int64_t x_stride;  // in elements, multiples of 4, as is delta_stride and out_stride
    int64_t delta_stride;
    int64_t out_stride;
    int32_t rows;
    int32_t width;  // a multiple of 4, at most 32768
    float eps;
    int32_t num_rotations;  // 0: none. Else rows of out have `width` up to the next multiple of 128 columns
    int64_t out_step;  // from out[i] to out[i + 1], in elements, a multiple of 4
    const void* suh[exl_max_rotations];  // fp16, as many as out has columns, 8-byte aligned
} exl_norm_args;

EXL_API exl_status exl_norm(const exl_norm_args* args, exl_stream stream);
