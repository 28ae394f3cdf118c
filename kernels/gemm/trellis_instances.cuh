// EXL_TRELLIS(rate2, mul1) is the entry of one format.
#pragma once

#include "gemm/instances.cuh"
#include "gemm/trellis.cuh"

namespace exl {
namespace gemm {

template <int rate2, bool mul1>
exl_status launch_trellis_expand(const Tiles& tiles, Multiplier m, const exl_expand_args& args, exl_stream stream) {
    const int at_once = expand_threads / group_size;
    const dim3 grid(static_cast<unsigned>((tiles.across + at_once - 1) / at_once), static_cast<unsigned>(tiles.along));
    return EXL_LAUNCH((expand_trellis<rate2, mul1>), grid, expand_threads, 0, stream, tiles, m, args);
}

#define EXL_TRELLIS(rate2, mul1) {rate2, launch_format<Trellis<rate2, mul1>>, launch_trellis_expand<rate2, mul1>}

template <int count> const TrellisEntry* find_rate(const TrellisEntry (&entries)[count], int rate2) {
    for (const TrellisEntry& entry : entries)
        if (entry.rate2 == rate2) return &entry;
    return nullptr;
}

}  // namespace gemm
}  // namespace exl
