// Copies of 16 bytes from global to shared memory that run beside the computation.
//
//     copy_async(&tile[0][i], source + i);      // issue; both addresses are multiples of 16
//     copy_async_commit();                      // what was issued since the last commit is one group
//     copy_async_wait<1>();                     // all of this thread's groups but the youngest have arrived
//     __syncthreads();                          // ... and now those of the other threads
//
// sm_75 and AMD copy at once, by the thread itself. A thread must wait for all its groups before it ends.
#pragma once

#include "exl/portability.h"

#if defined(EXL_EMU)
#include "emulator/async.h"
#endif

namespace exl {

#if defined(EXL_EMU)

namespace emulator {

inline void copy16(void* to, const void* from) {
    const uint4 zeros = {0, 0, 0, 0};
    *static_cast<uint4*>(to) = from ? *static_cast<const uint4*>(from) : zeros;
}

inline void check_aligned(const char* what, const void* address) {
    if (reinterpret_cast<uintptr_t>(address) % 16) fail("%s: %p is not a multiple of 16 bytes", what, address);
}

}  // namespace emulator

// The destination is undefined, here NaN, until the wait.
EXL_DEVICE void copy_async(void* shared, const void* global) {
    emulator::check_aligned("copy_async, destination", shared);
    emulator::check_aligned("copy_async, source", global);
    *static_cast<uint4*>(shared) = {~0u, ~0u, ~0u, ~0u};
    emulator::issue({shared, global});
}
// Zeros instead of the source where `valid` is false; the source is not read then and may be any address.
EXL_DEVICE void copy_async(void* shared, const void* global, bool valid) {
    emulator::check_aligned("copy_async, destination", shared);
    if (valid) emulator::check_aligned("copy_async, source", global);
    *static_cast<uint4*>(shared) = {~0u, ~0u, ~0u, ~0u};
    emulator::issue({shared, valid ? global : nullptr});
}
EXL_DEVICE void copy_async_commit() { emulator::commit(); }
template <int pending> EXL_DEVICE void copy_async_wait() {
    for (const emulator::AsyncCopy& copy : emulator::take(pending)) emulator::copy16(copy.to, copy.from);
}

#elif defined(EXL_CUDA) && (EXL_SM == 0 || EXL_SM >= 80)

EXL_DEVICE void copy_async(void* shared, const void* global) {
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(__cvta_generic_to_global(global))
                 : "memory");
}
EXL_DEVICE void copy_async(void* shared, const void* global, bool valid) {
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(global)),
                 "r"(bytes)
                 : "memory");
}
EXL_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending> EXL_DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

#else

EXL_DEVICE void copy_async(void* shared, const void* global) {
    *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
}
EXL_DEVICE void copy_async(void* shared, const void* global, bool valid) {
    *static_cast<uint4*>(shared) = valid ? *static_cast<const uint4*>(global) : make_uint4(0, 0, 0, 0);
}
EXL_DEVICE void copy_async_commit() {}
template <int pending> EXL_DEVICE void copy_async_wait() {}

#endif

}  // namespace exl
