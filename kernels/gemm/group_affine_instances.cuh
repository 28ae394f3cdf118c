// The launcher of one format: EXL_INSTANCE(bits, scheme) defines it for all numbers of tokens.
#pragma once

#include "gemm/group_affine.cuh"
#include "gemm/group_affine_launch.h"
#include "gemm/instances.cuh"

namespace exl {
namespace gemm {

template <int bits, int scheme>
exl_status launch_group_affine(const Problem& problem, const Shape& shape, exl_stream stream) {
    return launch_format<GroupAffine<bits, scheme>>(problem, shape, stream);
}

#define EXL_INSTANCE(bits, scheme) \
    template exl_status launch_group_affine<bits, scheme>(const Problem&, const Shape&, exl_stream);

}  // namespace gemm
}  // namespace exl
