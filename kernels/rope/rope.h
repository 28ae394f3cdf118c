// Rotary embedding, and [q/k norm -> rotary embedding -> queries back, keys and values into their pages].
//
//     table[r] = scale * (cos, sin)(float(position) * inv_freq)        once a step, for all layers that share it
//     x = x / sqrt(mean(x^2) + eps) * norm                             q and k, where a norm is given
//     (x[i], x[i + h]) = (x[i] c - x[i + h] s, x[i + h] c + x[i] s)    q and k, i < h = rotary_dim / 2
//     q, and k and v that are packed: Hadamard-32; then fp16, or codes and scales (layouts/kv_page.h)
//
// q is rotated where keys are packed. Everything is fp32 between one rounding at the start and one at the end; one group
// of 32 lanes does one head of one row, lane l features l, l + 32, ... Oracles: reference.rope, quantize.
#pragma once

#include "cache/cache.h"

typedef struct exl_rope_table_args {
    const int32_t* positions;  // (rows,) in device memory; rows with a negative one are left alone
    const float* inv_freq;  // (rotary_dim / 2,)
    float* table;  // (rows, rotary_dim): cosines, then sines
    int32_t rows;
    int32_t rotary_dim;  // even
    float scale;
} exl_rope_table_args;

EXL_API exl_status exl_rope_table(const exl_rope_table_args* args, exl_stream stream);

typedef struct exl_rope_and_store_args {
    const void* q;  // (rows, num_heads * head_dim) fp16
    const void* k;  // (rows, num_kv_heads * head_dim) fp16
    const void* v;
    void* q_out;  // (rows, num_heads * padded_dim) fp16; may be q where padded_dim is head_dim
    int64_t q_stride, k_stride, v_stride, q_out_stride;  // in elements
    int32_t num_heads;
    const float* q_norm;  // (head_dim,) or null
    const float* k_norm;
    float q_eps, k_eps;
    const float* table;  // of exl_rope_table; null: no rotary embedding
    int32_t rotary_dim;  // at most head_dim
    exl_kv_cache cache;
    exl_rows rows;
    // (rows,) in device memory. A row with a key or value that its cache cannot hold (NaN, infinity, beyond fp16; a packed
    // group whose largest magnitude exceeds 65504) gets `layer`, if it holds -1.
    int32_t* faults;
    int32_t layer;
} exl_rope_and_store_args;

EXL_API exl_status exl_rope_and_store(const exl_rope_and_store_args* args, exl_stream stream);
