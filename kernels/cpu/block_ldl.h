// H = L D L^T with blocks of 16: the feedback of LDLQ (Tseng et al. 2024, QuIP#, section 4.1; blocks: appendix).
//
//   for each block b:   L[j][b] = A[j][b] D_b^-1,  D_b = A[b][b];   A[j][k] -= L[j][b] A[k][b]^T   for j >= k > b
//
// An element is a sum in the order of the blocks, whoever computes it. Bounded by reading the trailing matrix once a
// block. Oracle: numpy, tests/conversion/test_ldlq.py.
#pragma once

#include <cstdint>

#include "team.h"

namespace exl::cpu {

// matrix: (n, n) symmetric, n a multiple of 16, of which the lower triangle of blocks is read and destroyed.
// factor: (n, n) float32, L without its diagonal blocks in the lower triangle, 0 elsewhere.
// Returns whether all D_b are positive definite; else the factor is not defined.
bool block_ldl(Team& team, double* matrix, int64_t n, float* factor);

}  // namespace exl::cpu
