// The instances of the trellis kernels; each kind of codebook is compiled in its own file.
#pragma once

#include "gemm/problem.h"
#include "gemm/trellis.h"

namespace exl {
namespace gemm {

// Codebooks that differ in two numbers share their code.
struct Multiplier {
    uint32_t factor, addend;
};

// A matrix of tiles of 16 x 16 weights, along K and N.
struct Tiles {
    const uint8_t* data;
    int across, along;  // N / 16, K / 16
};

struct TrellisEntry {
    int rate2;
    exl_status (*multiply)(const Problem&, const Shape&, exl_stream);
    exl_status (*expand)(const Tiles&, Multiplier, const exl_expand_args&, exl_stream);
};
// Null where the rate is not compiled for the codebook.
const TrellisEntry* find_sum_of_halves(int rate2);  // 3INST and mcg
const TrellisEntry* find_sum_of_bytes(int rate2);   // mul1

// Kernels exist for 8 and for 32 tokens: expansion serves more.
constexpr int trellis_token_tiles = 1 | 4;

}  // namespace gemm
}  // namespace exl
