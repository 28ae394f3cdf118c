// Kernels that start before the one in front of them has ended (sm_90 and newer; elsewhere nothing happens).
//
// A kernel launched with EXL_LAUNCH_DEPENDENT may run its prologue early: load weights, set up shared memory. Before it
// touches anything that an earlier kernel writes, or writes what an earlier one reads, it calls wait_for_previous_kernel().
#pragma once

#include "exl/portability.h"

namespace exl {

EXL_DEVICE void wait_for_previous_kernel() {
#if EXL_SM >= 90
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may start once every block has called this or ended.
EXL_DEVICE void let_next_kernel_start() {
#if EXL_SM >= 90
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

#if defined(EXL_CUDA)
template <class... Parameters, class... Arguments>
exl_status launch_dependent(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                            exl_stream stream, Arguments&&... arguments) {
    EXL_TRY(allow_shared(name, kernel, shared_bytes));
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &attribute;
    config.numAttrs = 1;
    return vendor_status(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}
#define EXL_LAUNCH_DEPENDENT(kernel, grid, block, shared_bytes, stream, ...) \
    ::exl::launch_dependent(#kernel, kernel, dim3(grid), dim3(block), shared_bytes, stream, __VA_ARGS__)
#else
#define EXL_LAUNCH_DEPENDENT EXL_LAUNCH
#endif

}  // namespace exl
