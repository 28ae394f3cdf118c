// The instances of the kernel; each is compiled in one of the files group_affine_*.cu.
#pragma once

#include "gemm/problem.h"

namespace exl {
namespace gemm {

template <int bits, int scheme>
exl_status launch_group_affine(const Problem& problem, const Shape& shape, exl_stream stream);

// f(bits, scheme) for every combination that is compiled.
#define EXL_FLAT_FORMATS(f) \
    f(4, exl_symmetric) f(5, exl_symmetric) f(8, exl_symmetric) f(4, exl_affine) f(5, exl_affine)
#define EXL_SUPER_FORMATS(f) \
    f(4, exl_super32) f(5, exl_super32) f(2, exl_super16) f(3, exl_super16_signed) f(6, exl_super16_signed)

}  // namespace gemm
}  // namespace exl
