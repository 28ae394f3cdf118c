// Small types that the contracts of several kernels share.
#pragma once

#include <stdint.h>

// How numbers are stored: activations, dense weights, key and value pages.
typedef enum exl_dtype { exl_f32 = 0, exl_f16 = 1, exl_bf16 = 2 } exl_dtype;

typedef enum exl_activation {
    exl_no_activation = 0,
    exl_silu = 1,
    exl_gelu_tanh = 2,
    exl_gelu = 3,  // with erf
} exl_activation;

enum { exl_page_size = 256 };  // tokens per page of the cache
