// The input side of Trellis weights: xh = Hd(x * suh) as f16, for up to four matrices that share x and differ in suh.
//
//     out[i][row] = Hd(x[row] * suh[i])       columns behind the end of x count as zeros
//
// Hd is the orthonormal Hadamard matrix of blocks of 128. A group of 32 lanes takes one block of one row. A layer whose
// input is normalized does the same inside the norm (norm/norm.h). Oracle: exllama/formats/trellis.py
// (tests/kernels/test_trellis.py). Bound: launch and L2.
#pragma once

#include "gemm/linear.h"

typedef struct exl_hadamard_args {
    const void* x;  // (rows, x_stride) f16
    int64_t x_stride;
    int32_t rows;
    int32_t cols;  // that x has
    int32_t num_outputs;
    const void* suh[exl_max_projections];  // (padded,) f16 each; padded: cols up to the next multiple of 128
    void* out;  // (num_outputs, ., out_stride) f16, 8-byte aligned
    int64_t out_stride;  // from row to row; elements, a multiple of 4, at least padded
    int64_t out_step;  // from output to output; elements, a multiple of 4
} exl_hadamard_args;

EXL_API exl_status exl_hadamard(const exl_hadamard_args* args, exl_stream stream);
