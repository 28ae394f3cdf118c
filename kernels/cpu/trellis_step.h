// One position of the search of trellis_search.h, and the feedback of LDLQ: what an instruction-set level gives to it.
#pragma once

#include "exl_cpu.h"

namespace exl::cpu {

constexpr int search_tiles = 2;           // that a worker searches at the same time
constexpr uint16_t trellis_dear = 0x7fff; // no cost is kept that is higher

// One position of `search_tiles` tiles.
struct TrellisStep {
    const int16_t* table;              // 65536 values in the order of trellis_search.h
    const uint16_t* in[search_tiles];  // (2^(16 - k_in),)
    uint16_t* out[search_tiles];       // (2^(16 - k_out),)
    int16_t target[search_tiles];
    uint16_t low[search_tiles];        // smallest number of `in`; replaced by that of `out`
};

}  // namespace exl::cpu

#ifdef EXL_ISA
namespace EXL_ISA {

using exl::cpu::TrellisStep;

// k_in, k_out: 1 to 8, equal or neighbours below 5.
void trellis_step(int32_t k_in, int32_t k_out, TrellisStep& args);

// targets (16, 16) += feedback^T errors: feedback has `rows` rows of 16, `stride` apart, errors is (rows, 16).
void trellis_targets(const float* feedback, int64_t stride, const float* errors, int64_t rows, float* targets);

}  // namespace EXL_ISA
#endif
