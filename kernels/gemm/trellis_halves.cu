// The trellis kernels of 3INST and mcg: weights are sums of halves.
#include "gemm/trellis_instances.cuh"

namespace exl {
namespace gemm {

const TrellisEntry* find_sum_of_halves(int rate2) {
    static const TrellisEntry entries[] = {EXL_TRELLIS(2, false),  EXL_TRELLIS(4, false),  EXL_TRELLIS(6, false),
                                           EXL_TRELLIS(8, false),  EXL_TRELLIS(10, false), EXL_TRELLIS(12, false),
                                           EXL_TRELLIS(14, false), EXL_TRELLIS(16, false)};
    return find_rate(entries, rate2);
}

}  // namespace gemm
}  // namespace exl
