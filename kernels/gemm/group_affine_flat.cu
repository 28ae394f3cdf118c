// Products with GroupAffine weights whose groups have their own scales.
#include "gemm/group_affine_instances.cuh"

namespace exl {
namespace gemm {

EXL_FLAT_FORMATS(EXL_INSTANCE)

}  // namespace gemm
}  // namespace exl
