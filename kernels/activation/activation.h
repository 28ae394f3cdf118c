// The gate of an MLP: out = half(activation(gate) * up), in fp32 between.
//
// Oracle: reference.activate.
#pragma once

#include "exl/portability.h"
#include "exl/types.h"

typedef struct exl_gate_args {
    const void* gate;   // (rows, gate_stride) fp16, 4-byte aligned as all three
    const void* up;     // (rows, up_stride) fp16; may lie in the rows of gate, as a second half
    void* out;          // (rows, out_stride) fp16; may be gate or up
    int64_t gate_stride, up_stride, out_stride;  // in elements, multiples of 2
    int32_t rows;
    int32_t width;      // a multiple of 2
    exl_activation activation;
} exl_gate_args;

EXL_API exl_status exl_gate(const exl_gate_args* args, exl_stream stream);
