// What a kernel sees of the emulator: CUDA's names for the current thread, shared memory, barriers, launches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <tuple>
#include <utility>

#include "emulator/types.h"
#include "exl/status.h"

#ifndef EXL_EMU_WARP_SIZE
#define EXL_EMU_WARP_SIZE 32
#endif

typedef void* exl_stream;

namespace exl::emulator {

// The CUDA thread that runs on this OS thread; null outside a kernel.
struct Position {
    uint3 thread, block;
    dim3 block_size, grid_size;
};
extern __thread const Position* position __attribute__((tls_model("initial-exec")));

// Stops the launch: the launcher gets exl_launch_failed and this text, with the kernel, block and thread. printf's format.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// __syncthreads of all threads that still run. Returns how many passed a true predicate.
int barrier(int predicate, const char* name, const char* file, int line);

// Shared memory of the current block for one EXL_SHARED, made at its first use and filled with NaN (0xff bytes).
void* shared(const void* key, size_t bytes);
void* dynamic_shared();

// The rendezvous of the 32 lanes of a group: each deposits `bytes` (at most 64) under its lane, and gets the deposits
// of all. They stay valid until the group's next but one rendezvous. `memory_order`: writes before are seen after.
// The lane that comes last calls `finish` on the deposits, which may change them, before anyone sees them.
constexpr int slot_bytes = 64, group_lanes = 32, warp_size_of_build = EXL_EMU_WARP_SIZE;
typedef unsigned char (*Deposits)[slot_bytes];
typedef void (*Finish)(Deposits deposits);
Deposits rendezvous(const char* name, const void* deposit, int bytes, bool memory_order, Finish finish = nullptr);
// The same for all lanes of a wave, which matters where the wave is wider than a group.
void converge(const char* name);

uint32_t shuffle(uint32_t value, int source);
uint32_t ballot(bool predicate);
void sync_warp();

struct Launch {
    const char* kernel;
    dim3 grid, block;
    size_t shared_bytes;
    std::function<void()> body;
};
// Queues a launch on a stream: at once, on synchronization, or into the graph that is being captured.
exl_status enqueue(exl_stream stream, Launch launch);

}  // namespace exl::emulator

namespace exl {

template <class... Parameters, class... Arguments> exl_status launch(const char* name, void (*kernel)(Parameters...),
                                                                     dim3 grid, dim3 block, size_t shared_bytes,
                                                                     exl_stream stream, Arguments&&... arguments) {
    std::tuple<Parameters...> values(static_cast<Parameters>(std::forward<Arguments>(arguments))...);
    return emulator::enqueue(stream, {name, grid, block, shared_bytes,
                                      [kernel, values = std::move(values)] { std::apply(kernel, values); }});
}

}  // namespace exl

#define threadIdx (::exl::emulator::position->thread)
#define blockIdx (::exl::emulator::position->block)
#define blockDim (::exl::emulator::position->block_size)
#define gridDim (::exl::emulator::position->grid_size)

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    ::exl::emulator::barrier(0, "__syncthreads", file, line);
}
inline int __syncthreads_count(int predicate, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return ::exl::emulator::barrier(predicate != 0, "__syncthreads_count", file, line);
}

#define EXL_SHARED(type, name, dimensions)   \
    using name##_exl_type = type dimensions; \
    static const char name##_exl_key = 0;    \
    auto& name = *static_cast<name##_exl_type*>(::exl::emulator::shared(&name##_exl_key, sizeof(name##_exl_type)))
#define EXL_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::exl::emulator::dynamic_shared())
