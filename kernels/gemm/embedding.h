// Rows of a table by token id, and whole tables as fp16.
//
//     embed    out (rows, K) f32 = multiplier * table[ids[row]]       ids (rows,) int32 in device memory
//     expand   out (N, K) f16 = table                                 for prefill through the vendor's library
//
// value = code * scale + offset with one rounding, in fp32; expansion rounds once more. An id outside 0 .. N - 1 gives a row
// of NaN and reads nothing. One block a token; one group of 32 lanes a step of 16 rows x 64 columns. Bound: memory.
// Oracle: the dequantized table (tests/kernels/test_embedding.py).
#pragma once

#include "gemm/dense.h"
#include "gemm/group_affine.h"

typedef struct exl_embed_args {
    const int32_t* ids;
    int32_t rows;
    float* out;  // 16-byte aligned
    int64_t out_stride;  // elements, a multiple of 4, at least K
    float multiplier;
} exl_embed_args;

EXL_API exl_status exl_group_affine_embed(const exl_group_affine* table, const exl_embed_args* args, exl_stream stream);
EXL_API exl_status exl_dense_embed(const exl_dense* table, const exl_embed_args* args, exl_stream stream);

typedef struct exl_expand_args {
    void* out;  // f16, 16-byte aligned
    int64_t out_stride;  // elements, a multiple of 8, at least K
} exl_expand_args;

EXL_API exl_status exl_group_affine_expand(const exl_group_affine* weight, const exl_expand_args* args,
                                           exl_stream stream);
