// The trellis kernels of mul1: weights are sums of bytes.
#include "gemm/trellis_instances.cuh"

namespace exl {
namespace gemm {

const TrellisEntry* find_sum_of_bytes(int rate2) {
    static const TrellisEntry entries[] = {EXL_TRELLIS(2, true),  EXL_TRELLIS(3, true),  EXL_TRELLIS(4, true),
                                           EXL_TRELLIS(5, true),  EXL_TRELLIS(6, true),  EXL_TRELLIS(7, true),
                                           EXL_TRELLIS(8, true),  EXL_TRELLIS(10, true), EXL_TRELLIS(12, true),
                                           EXL_TRELLIS(14, true), EXL_TRELLIS(16, true)};
    return find_rate(entries, rate2);
}

}  // namespace gemm
}  // namespace exl
