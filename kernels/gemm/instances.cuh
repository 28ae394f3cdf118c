// One Format of products.cuh as kernels: launch_format starts the one for as many tokens as the shape says.
#pragma once

#include "gemm/products.cuh"

namespace exl {
namespace gemm {

template <class Format, int token_tiles> EXL_KERNEL((Plan<Format, token_tiles>::threads), 1)
multiply(const Problem problem) {
    EXL_DYNAMIC_SHARED(uint8_t, memory);
    multiply_block<Format, token_tiles>(problem, memory);
}

template <class Format, int token_tiles>
exl_status launch_tiles(const Problem& problem, const Shape& shape, exl_stream stream) {
    using P = Plan<Format, token_tiles>;
    return EXL_LAUNCH_DEPENDENT((multiply<Format, token_tiles>), shape.grid, P::threads, P::shared_bytes, stream,
                                problem);
}

template <class Format> exl_status launch_format(const Problem& problem, const Shape& shape, exl_stream stream) {
    constexpr int compiled = Format::compiled_tiles;
    if constexpr (compiled & 1)
        if (shape.token_tiles == 1) return launch_tiles<Format, 1>(problem, shape, stream);
    if constexpr (compiled & 2)
        if (shape.token_tiles == 2) return launch_tiles<Format, 2>(problem, shape, stream);
    if constexpr (compiled & 4)
        if (shape.token_tiles == 4) return launch_tiles<Format, 4>(problem, shape, stream);
    if constexpr (compiled & 8) return launch_tiles<Format, 8>(problem, shape, stream);
    return refuse(exl_unsupported_device, "rows", "found %d, for which no kernel is compiled", problem.rows);
}

}  // namespace gemm
}  // namespace exl
