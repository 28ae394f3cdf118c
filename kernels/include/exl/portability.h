// One set of names for four compilers: nvcc (EXL_CUDA), clang for AMD (EXL_HIP), and any C++ compiler for the
// emulator (EXL_EMU), which runs the same text on the CPU.
//
// A kernel file uses these names, the headers beside this one, and of CUDA itself only threadIdx, blockIdx, blockDim,
// gridDim, __syncthreads(), dim3 and the vector types (uint4, float2, make_float2, ...). Never __shared__, <<<>>>, a warp
// intrinsic, inline assembly or a builtin: those live in these headers alone.
//
//     EXL_KERNEL(128) scale(float* x, float factor, int n) {            // at most 128 threads a block
//         EXL_SHARED(float, tile, [4][32]);                             // poisoned with NaN by the emulator
//         EXL_DYNAMIC_SHARED(uint8_t, scratch);                         // size given at the launch, 16-byte aligned
//         ...
//     }
//     exl_status status = EXL_LAUNCH(scale, grid, block, scratch_bytes, stream, x, 2.0f, n);
//     exl_status status = EXL_LAUNCH((copy<4, 8>), grid, block, 0, stream, x, y);   // a comma needs parentheses
//
// Lanes come in groups of 32 (warp.h), on hardware with waves of 64 too; no kernel may assume that two groups run in
// step. A block has at most 1024 threads, and its threads are counted along x alone: blockDim is (n, 1, 1).
#pragma once

#include <stdint.h>
#include "exl/status.h"

// In the C ABI a stream is an opaque pointer: cudaStream_t, hipStream_t or the emulator's. Null: the default stream.
typedef void* exl_stream;

#if defined(EXL_HOST)
// A host program that only calls the C ABI: the contracts of the kernels need no vendor's headers.
#elif defined(EXL_EMU)
#include "emulator/device.h"
#elif defined(__HIP__)
#define EXL_HIP 1
#include <hip/hip_fp16.h>
#include <hip/hip_runtime.h>
#include "exl/launch_gpu.h"
#else
#define EXL_CUDA 1
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include "exl/launch_gpu.h"
#endif

// What the device that is being compiled for has. In the host pass of nvcc and clang both are 0.
#if defined(EXL_CUDA) && defined(__CUDA_ARCH__)
#define EXL_SM (__CUDA_ARCH__ / 10)  // 75, 80, 86, 89, 90, 100, 103, 110, 120, 121
#else
#define EXL_SM 0
#endif
#if defined(EXL_HIP) && (defined(__gfx90a__) || defined(__gfx942__) || defined(__gfx950__))
#define EXL_CDNA 1  // matrix instructions of the MFMA kind, waves of 64
#else
#define EXL_CDNA 0
#endif
#if defined(EXL_HIP) && defined(__GFX11__)
#define EXL_RDNA 11
#elif defined(EXL_HIP) && defined(__GFX12__)
#define EXL_RDNA 12
#elif defined(EXL_HIP) && defined(__GFX10__)
#define EXL_RDNA 10
#else
#define EXL_RDNA 0
#endif

#if defined(EXL_EMU) || defined(EXL_HOST)
#define EXL_DEVICE inline
#define EXL_HOST_DEVICE inline
#define EXL_KERNEL(...) static void
#else
#define EXL_DEVICE __device__ __forceinline__
#define EXL_HOST_DEVICE __host__ __device__ __forceinline__
#define EXL_SHARED(type, name, dimensions) __shared__ __align__(16) type name dimensions
#define EXL_DYNAMIC_SHARED(type, name)                           \
    extern __shared__ __align__(16) unsigned char exl_dynamic[]; \
    type* name = reinterpret_cast<type*>(exl_dynamic)
#endif
#if defined(EXL_CUDA)
#define EXL_KERNEL(...) static __global__ void __launch_bounds__(__VA_ARGS__)
#elif defined(EXL_HIP)
// The second number of CUDA's launch bounds counts blocks, HIP's counts waves: only the first travels.
#define EXL_FIRST(first, ...) first
#define EXL_KERNEL(...) static __global__ void __launch_bounds__(EXL_FIRST(__VA_ARGS__, 0))
#endif

#define EXL_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    ::exl::launch(#kernel, kernel, dim3(grid), dim3(block), shared_bytes, stream, __VA_ARGS__)

namespace exl {

// Lanes that a shuffle, a ballot and a matrix instruction span, on every device.
constexpr int group_size = 32;

// Lanes that the hardware runs in step: 32, or 64 on CDNA.
#if defined(EXL_EMU)
constexpr int warp_size = EXL_EMU_WARP_SIZE;
#elif defined(EXL_HIP) && defined(__GFX9__)
constexpr int warp_size = 64;
#else
constexpr int warp_size = 32;
#endif
static_assert(warp_size == 32 || warp_size == 64, "a warp has 32 or 64 lanes");

}  // namespace exl
