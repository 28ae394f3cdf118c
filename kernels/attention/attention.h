// Causal attention over paged keys and values, fp16 or packed, which are read as they lie; any number of rows a sequence.
//
//     s = softcap(scale * q . k)      row at position p sees [max(0, p - window + 1), p]; head h reads kv head h G / H
//     out = half(sum exp(s) v / (sum exp(s) + exp(sink)))
//
// q comes from exl_rope_and_store (rotated where keys are packed); the output is rotated back where values are packed.
//
// Work. A tile is up to 16 query vectors, rows x heads of one kv head, that share every key and value they read: of a group
// of g heads, rows whose positions agree in position / (16 / g). A page gives each vector a partial (peak, sum, weighted
// values), made from that vector and the page alone; partials are merged in page order. `splits` blocks share the pages of
// a tile, split i taking pages i, i + splits, ...; then partials go through the workspace and the block that arrives last
// merges them with the very operations that a single block uses. Hence a row's bits depend on its sequence alone: not
// on other rows, chunks, splits or the device's size.
//
//     4 heads a kv head, splits = 2, rows at positions 509 510 511 | 512
//     tile of row 0 (positions 508..511: 3 rows x 4 heads)    pages 0 1      block 0: page 0    block 1: page 1
//     tile of row 3 (positions 512..515: 1 row x 4 heads)     pages 0 1 2    block 0: 0, 2      block 1: page 1
//     rows 1 and 2 start no tile: their blocks end at once
//
// A block is 4 groups of 32 lanes. Keys: each takes a quarter of the tokens of every tile of 64 (32 where head_dim is 256),
// 16 x 8 scores an instruction. Values: each takes a quarter of the features, all tokens. Tiles come through three
// stages of asynchronous copies. Oracle: reference.attention.
#pragma once

#include "cache/cache.h"

typedef struct exl_attention_args {
    const void* q;  // (rows, num_heads * padded_dim) fp16, 4-byte aligned
    void* out;  // (rows, num_heads * head_dim) fp16; not q
    int64_t q_stride;  // in elements, a multiple of 2
    int64_t out_stride;
    int32_t num_heads;
    float scale;
    int32_t window;  // 0: none
    float softcap;  // 0: none
    const float* sinks;  // (num_heads,) or null: a logit per head that takes its share of the sum, but has no value
    exl_kv_cache cache;
    exl_rows rows;
    int32_t splits;  // 1 needs no workspace
    void* workspace;  // of exl_attention_workspace, 16-byte aligned; arbitrary content
    uint32_t* tickets;  // zeros before the first launch, zeros after each
} exl_attention_args;

typedef struct exl_attention_workspace {
    int64_t workspace_bytes;
    int64_t ticket_bytes;
} exl_attention_workspace;

// What a launch with these numbers needs; pointers in args are not looked at.
EXL_API exl_status exl_attention_workspace_size(const exl_attention_args* args, exl_attention_workspace* size);

// A number of splits that fills `processors` for `rows` rows and pages_per_sequence pages. It changes no result.
EXL_API exl_status exl_attention_splits(const exl_attention_args* args, int32_t processors, int32_t* splits);

EXL_API exl_status exl_attention(const exl_attention_args* args, exl_stream stream);
