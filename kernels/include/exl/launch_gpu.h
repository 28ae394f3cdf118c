// Launches on a real GPU. Included by portability.h only.
#pragma once

#include <utility>

#if defined(EXL_HIP)
#define EXL_GPU(name) hip##name
typedef hipStream_t exl_native_stream;
#else
#define EXL_GPU(name) cuda##name
typedef cudaStream_t exl_native_stream;
#endif

namespace exl {

// Turns a code of the vendor's runtime into a status and records its text; `what` names the call. ok stays silent.
exl_status vendor_status(int code, const char* what);

// More shared memory than a kernel gets without asking.
constexpr size_t unasked_shared_bytes = 48 * 1024;

template <class... Parameters>
exl_status allow_shared(const char* name, void (*kernel)(Parameters...), size_t shared_bytes) {
    if (shared_bytes <= unasked_shared_bytes) return exl_ok;
    return vendor_status(
        EXL_GPU(FuncSetAttribute)(reinterpret_cast<const void*>(kernel),
                                  EXL_GPU(FuncAttributeMaxDynamicSharedMemorySize), static_cast<int>(shared_bytes)),
        name);
}

template <class... Parameters, class... Arguments> exl_status launch(const char* name, void (*kernel)(Parameters...),
                                                                     dim3 grid, dim3 block, size_t shared_bytes,
                                                                     exl_stream stream, Arguments&&... arguments) {
    EXL_TRY(allow_shared(name, kernel, shared_bytes));
    kernel<<<grid, block, shared_bytes, static_cast<exl_native_stream>(stream)>>>(
        std::forward<Arguments>(arguments)...);
    return vendor_status(EXL_GPU(GetLastError)(), name);
}

}  // namespace exl
