// One token per row of logits: penalties, bias, mask, smoothing, temperature, filters, XTC and a counter-based draw.
//
//   logits -> penalties -> bias -> mask -> smoothing -> temperature -> top-k, top-p, top-a, min-p -> XTC -> draw
//
// The filters keep a prefix of the tokens sorted by (-logit, id), XTC removes the first of these, and the draw is the
// inverse of the cumulative distribution over what is left. Only as many tokens are sorted as somebody looks at.
// Work: two to four passes over the vocabulary (about 10 us each for 50,000 tokens), and one for each band of
// weights that the search goes down, at most a factor of 16. Rows do not see each other.
// Oracle: exllama/generator/sampling/stack.py (numpy, float64), where the order is defined.
#pragma once

#include "exl_cpu.h"

namespace exl::cpu {

constexpr int32_t not_a_token = -1;  // a logit is NaN or +infinity
constexpr int32_t no_token_left = -2;  // every logit is -infinity or masked

// logits: (vocab,) of one row, not changed. Returns the token or one of the numbers above.
int32_t sample(const Kernels& kernels, const float* logits, int32_t vocab, const SampleRow& row);

// Philox4x32-10 (Salmon et al. 2011), key = seed, counter = (position, stream); 53 bits of it as a number in [0, 1).
double uniform(uint64_t seed, uint64_t position, uint32_t stream);

}  // namespace exl::cpu
