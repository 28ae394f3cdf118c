// The end of a pass: logits = softcap * tanh(x / softcap), or x where softcap is 0, in fp32.
//
// Oracle: reference.softcap.
#pragma once

#include "exl/portability.h"
#include "exl/types.h"

typedef struct exl_logits_args {
    const void* x;      // (rows, x_stride) fp32 or fp16, as x_type says; aligned to its type
    float* out;         // (rows, out_stride) fp32; may be x where x is fp32
    int64_t x_stride, out_stride;  // in elements
    int32_t rows;
    int32_t vocab;
    exl_dtype x_type;
    float softcap;      // 0 or more
} exl_logits_args;

EXL_API exl_status exl_logits(const exl_logits_args* args, exl_stream stream);
