// The Trellis family: y = Hd((Hd(x * suh)) @ decode(tiles)) * svh, block after block of 128 features on both sides.
//
// A band is 128 outputs. For each group of 128 inputs it has the streams of 8 x 8 tiles side by side, word by word:
//
//   data[band][group][word t of the stream][quad 2][tile column 8][tile row 4]   uint16
//
// so 64 bytes hold the same 16 bits of 32 tiles, and shifting two such lines yields 32 states at once: no gather, and no
// byte more than the file has. A quad is 4 tile rows: inputs k, k + 16, k + 32, k + 48 lie side by side, the operand of
// a dot product. Words of position 32 c .. 32 c + 31 are t = rate2 c .. rate2 (c + 1) - 1, chunk c, and give output
// columns c and c + 8 of every tile.
#pragma once

#include "exl_cpu.h"

namespace exl::cpu {

class Worker;

constexpr int trellis_block = 128;
constexpr int64_t trellis_group_bytes(int rate2) { return int64_t(rate2) * 1024; }

// Rows [first, last) of the matrix, exact but for one rounding each: out (last - first, cols).
void trellis_dequantize(const Weight& w, int32_t first, int32_t last, float* out);

}  // namespace exl::cpu

#ifdef EXL_ISA
namespace EXL_ISA {

// kernels/cpu/trellis.cpp, compiled per level. All projections must be trellises.
void trellis_linear(const exl::cpu::LinearArgs& args, const exl::cpu::Run& run, exl::cpu::Worker& worker);
int64_t trellis_scratch(const exl::cpu::LinearArgs& args, int32_t max_rows);

}  // namespace EXL_ISA
#endif
