// The smallest kernel that uses what all of them use, to show how one is written and tested.
#include "exl/portability.h"

namespace exl {
namespace {

EXL_KERNEL(128) scale_rows(const float* __restrict__ x, float* __restrict__ out, float factor, int n) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) out[i] = factor * x[i];
}

}  // namespace
}  // namespace exl

EXL_API exl_status test_scale(const float* x, float* out, float factor, int32_t n, exl_stream stream) {
    EXL_REQUIRE(n > 0, exl_bad_shape, "n", "found %d, expected at least 1", n);
    EXL_REQUIRE_ALIGNED(x, 4);
    EXL_REQUIRE_ALIGNED(out, 4);
    return EXL_LAUNCH(exl::scale_rows, (n + 127) / 128, 128, 0, stream, x, out, factor, n);
}
