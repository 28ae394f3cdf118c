// What the matrix products of all weight families share: out (rows, N) = x (rows, K) times W (N, K) transposed.
//
// x is fp16, row-major, its first element and its stride multiples of 16 bytes. Up to exl_max_projections matrices
// share x and one launch. With an activation there are two of equal shape, and only the first one's output is written:
// out = activation(x W0) * (x W1).
//
// A row of the result has the same bits whatever the number of rows, the other projections and the device's size: K is
// cut into slices whose length follows from K and N alone, sums inside a slice have a fixed order, and slices are added
// in ascending order.
#pragma once

#include "exl/portability.h"
#include "exl/types.h"

enum { exl_max_projections = 4 };

// Where a projection goes.
typedef struct exl_output {
    void* out;  // (rows, stride) of f16 or f32, 16-byte aligned
    int64_t stride;  // elements from row to row, at least N
    exl_dtype dtype;  // exl_f16 or exl_f32
    int32_t add;  // 1: out += instead of out =; f32 and no activation
    const float* bias;  // (N,) or null
} exl_output;

// Scratch of a launch. partials: arbitrary content. tickets: zeros before the first launch; a launch leaves zeros.
// Launches on one stream may share both.
typedef struct exl_workspace {
    float* partials;  // 16-byte aligned
    int64_t partial_bytes;
    uint32_t* tickets;
    int64_t num_tickets;
} exl_workspace;
