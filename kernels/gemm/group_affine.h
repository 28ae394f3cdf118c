// Matrix products with GroupAffine weights; see linear.h for the operation and layouts/group_affine.h for the layout.
//
//     argument     shape             type, layout
//     x            (rows, K)         fp16, stride in elements, pointer and stride multiples of 16 bytes
//     data         ceil(N/16) tiles  layouts/group_affine.h, 16-byte aligned
//     out          (rows, N)         fp16 or fp32
//
// Limits: K a multiple of 32, of 256 with two-level scales; K and N at most 2^24.
//
// Work split, here for 8 tokens and two slices of K: a block of four groups of 32 lanes takes 8 tiles (128 rows of W),
// one slice and up to 64 tokens. Each group streams its own two tiles through a ring in shared memory; x is shared.
//
//              slice 0        slice 1                x (tokens, chunk of 256 columns)  -> shared memory, two buffers
//     tile 0  [ block 0  |   block 1  ] group 0      W (2 tiles, 64 columns)           -> ring of 3 or 4 stages a group
//     tile 1  [          |            ] group 0      the block that arrives last adds the slices
//     ...
//
// Codes become halves by a shift and a mask alone: code q as the bits of a half is q * 2^-24, a subnormal number that
// the tensor core multiplies exactly. The zero point (and the offset) multiplies the group's sum of activations, which
// one product with a constant matrix yields for all tiles. Scales meet the group's sum in fp32.
//
// Registers: at most 255 at 128 threads; shared memory below 64 KiB. Bound: memory for few rows.
// Oracle: the dequantized matrix in float64 (tests/kernels/test_group_affine.py).
#pragma once

#include "gemm/linear.h"
#include "layouts/group_affine.h"

typedef struct exl_group_affine {
    const void* data;
    int32_t rows;  // N
    int32_t cols;  // K
    int32_t bits;
    exl_scheme scheme;
} exl_group_affine;

typedef struct exl_group_affine_projection {
    exl_group_affine weight;
    exl_output output;
} exl_group_affine_projection;

typedef struct exl_group_affine_linear_args {
    const void* x;
    int64_t x_stride;  // elements
    int32_t rows;
    int32_t num_projections;
    exl_activation activation;  // not none: two projections of one shape, bits and scheme
    exl_group_affine_projection projections[exl_max_projections];
    exl_workspace workspace;
} exl_group_affine_linear_args;

// Projections of one number of bits and one scheme share a launch.
EXL_API exl_status exl_group_affine_linear(const exl_group_affine_linear_args* args, exl_stream stream);
// What the launch needs of partial_bytes and num_tickets; 0 where it needs none. Pointers in args are not looked at.
EXL_API exl_status exl_group_affine_linear_workspace(const exl_group_affine_linear_args* args, int64_t* partial_bytes,
                                                     int64_t* num_tickets);

// How rows of a GGUF type ("Q4_0" .. "Q6_K") are held: bits, scheme, rows and cols of `weight`, bytes of a tile of 16 rows
// on the device and of one row in the file. exl_bad_dtype for other types, exl_bad_shape for a broken row.
EXL_API exl_status exl_group_affine_describe(const char* type, int32_t rows, int32_t cols, exl_group_affine* weight,
                                             int64_t* tile_bytes, int64_t* row_bytes);
// Host: `count` rows as in the file -> ceil(count / 16) tiles. Any start that is a multiple of 16 rows streams.
EXL_API exl_status exl_group_affine_pack(const char* type, int32_t cols, const void* rows, int32_t count, void* tiles);
