// The launcher of one format: EXL_INSTANCE(bits, scheme) defines it for all numbers of tokens.
#pragma once

#include "gemm/group_affine.cuh"
#include "gemm/group_affine_launch.h"

namespace exl {
namespace gemm {

template <class Format, int token_tiles>
exl_status launch_tiles(const Problem& problem, const Shape& shape, exl_stream stream) {
    return EXL_LAUNCH_DEPENDENT((multiply<Format, token_tiles>), shape.grid, (Plan<Format, token_tiles>::threads),
                                (Plan<Format, token_tiles>::shared_bytes), stream, problem);
}

template <int bits, int scheme>
exl_status launch_group_affine(const Problem& problem, const Shape& shape, exl_stream stream) {
    using Format = GroupAffine<bits, scheme>;
    switch (shape.token_tiles) {
        case 1: return launch_tiles<Format, 1>(problem, shape, stream);
        case 2: return launch_tiles<Format, 2>(problem, shape, stream);
        case 4: return launch_tiles<Format, 4>(problem, shape, stream);
        default: return launch_tiles<Format, 8>(problem, shape, stream);
    }
}

#define EXL_INSTANCE(bits, scheme) \
    template exl_status launch_group_affine<bits, scheme>(const Problem&, const Shape&, exl_stream);

}  // namespace gemm
}  // namespace exl
