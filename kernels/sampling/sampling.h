// The next token of every row of logits, chosen on the device.
//
//     x = logits, with the repetition penalty on the tokens of the history, plus the biases, -infinity where masked
//     temperature 0: the largest x, the lowest id of several
//     else: tokens by (-x, id), weights e^((x - largest) / temperature); top-k, top-p and min-p keep a first part of
//     them; the first is taken whose cumulative weight exceeds u times that of all that are kept
//
// u is Philox4x32-10 of (seed, position), as in kernels/cpu/sampling.cpp. Weights are float32 (expf), their sums whole
// numbers of 2^-44: exact, so no order of summation is seen. The CPU's sampler differs where a border between two tokens
// lies within 2^-20 of u or of a filter's limit. One block a row. Every filter keeps a first part of one order, so that
// each needs but the weight of its part: a search for the place where a sum over that order reaches a limit, digit by
// digit of the numbers' bits. Oracle: kernels/cpu/sampling.cpp, exllama/generator/sampling.
#pragma once

#include "exl/portability.h"

// In device memory; may change between launches.
typedef struct exl_sample_row {
    double temperature;  // 0: greedy
    double top_p;  // 1: off
    double min_p;  // 0: off
    double repetition_penalty;  // 1: off
    uint64_t seed;
    uint64_t position;  // of the token to be drawn
    int32_t top_k;  // 0: off
    int32_t history_length;  // of the row's history, at most history_stride
    int32_t bias_count;  // of the row's biases, at most bias_stride
    int32_t unused;
} exl_sample_row;

typedef struct exl_sample_args {
    const float* logits;  // (rows, logits_stride) fp32
    float* scratch;  // (rows, vocab) fp32, arbitrary content
    const exl_sample_row* row;  // (rows,)
    const int32_t* history;  // (rows, history_stride) ids, of which repeated ones count once; null: none
    const int32_t* bias_ids;  // (rows, bias_stride) ids, those of a row all different; null: none
    const float* biases;  // (rows, bias_stride)
    const uint32_t* mask;  // (rows, mask_stride) bit i % 32 of word i / 32: token i is allowed; null: all are
    int32_t* tokens;  // (rows,) out; -1: a logit is NaN or +infinity; -2: no token is left
    int64_t logits_stride, history_stride, bias_stride, mask_stride;  // in elements
    int32_t rows;
    int32_t vocab;  // at most 2^18, so that sums fit 64 bits
} exl_sample_args;

EXL_API exl_status exl_sample(const exl_sample_args* args, exl_stream stream);
