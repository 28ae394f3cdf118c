// Products with GroupAffine weights whose groups have scales in two levels.
#include "gemm/group_affine_instances.cuh"

namespace exl {
namespace gemm {

EXL_SUPER_FORMATS(EXL_INSTANCE)

}  // namespace gemm
}  // namespace exl
