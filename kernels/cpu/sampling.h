// One token per row of logits: repetition penalty, temperature, top-k, top-p, min-p and a counter-based draw.
//
// The filters keep a prefix of the tokens sorted by (-probability, id); the draw is the inverse of the cumulative
// distribution over that order. Only as many tokens are sorted as the filters and the draw need.
// Oracle: exllama/generator/sampling (numpy, float64).
#pragma once

#include "exl_cpu.h"

namespace exl::cpu {

// logits: (vocab,) of one row; scratch: (vocab,), used when there is a penalty. Returns the token, or -1 where a logit is NaN or
// +infinity or all are -infinity.
int32_t sample(const Kernels& kernels, const float* logits, float* scratch, int32_t vocab, const SampleRow& row);

// Philox4x32-10 (Salmon et al. 2011), key = seed, counter = position; 53 bits of it as a number in [0, 1).
double uniform(uint64_t seed, uint64_t position);

}  // namespace exl::cpu
