// Atomics on global memory, and the reduction by the block that arrives last.
//
// Sums of floats are never accumulated with atomics: their order would change from run to run. Blocks write partial
// results side by side, and the last of them adds these up in a fixed order:
//
//     partial[slice] = mine;                                          // any thread, any number of values
//     if (!last_block_arrives(&tickets[tile], blocks_of_tile)) return;
//     for (int s = 0; s < slices; s++) sum += load_coherent(&partial[s]);
//
// The ticket must be 0 before the first launch; it is 0 again afterwards, so that a graph can run it over and over.
#pragma once

#include "exl/portability.h"

#include <string.h>

namespace exl {

#if defined(EXL_EMU)

// All of these are relaxed: they order nothing but themselves.
template <class T> EXL_DEVICE T atomic_add(T* address, T value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
template <> inline float atomic_add(float* address, float value) {
    auto* word = reinterpret_cast<uint32_t*>(address);
    uint32_t before = __atomic_load_n(word, __ATOMIC_RELAXED), after;
    float old;
    do {
        memcpy(&old, &before, sizeof old);
        const float sum = old + value;
        memcpy(&after, &sum, sizeof after);
    } while (!__atomic_compare_exchange_n(word, &before, after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
template <class T> EXL_DEVICE T atomic_max(T* address, T value) {
    T before = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (before < value &&
           !__atomic_compare_exchange_n(address, &before, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return before;
}
// Returns what stood there: equal to `expected` if `desired` was stored.
template <class T> EXL_DEVICE T atomic_compare_and_swap(T* address, T expected, T desired) {
    __atomic_compare_exchange_n(address, &expected, desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
// Orders this thread's accesses to global memory for all threads of the device.
EXL_DEVICE void fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

namespace ticket {
EXL_DEVICE uint32_t take(uint32_t* counter) { return __atomic_fetch_add(counter, 1u, __ATOMIC_ACQ_REL); }
}  // namespace ticket

// What other blocks have written during this launch, past caches that may be stale.
template <class T> EXL_DEVICE T load_coherent(const T* address) { return *address; }

#else

namespace ticket {
template <class T> struct Word;
template <> struct Word<int32_t> {
    using type = int;
};
template <> struct Word<uint32_t> {
    using type = unsigned;
};
template <> struct Word<int64_t> {
    using type = long long;
};
template <> struct Word<uint64_t> {
    using type = unsigned long long;
};
template <> struct Word<float> {
    using type = float;
};
template <class T> using word = typename Word<T>::type;
}  // namespace ticket

// All of these are relaxed: they order nothing but themselves. int32, uint32, int64, uint64; add: uint64 and float too.
template <class T> EXL_DEVICE T atomic_add(T* address, T value) {
    using unsigned_word = ticket::word<T>;
    return static_cast<T>(atomicAdd(reinterpret_cast<unsigned_word*>(address), static_cast<unsigned_word>(value)));
}
template <> EXL_DEVICE int64_t atomic_add(int64_t* address, int64_t value) {
    return static_cast<int64_t>(
        atomicAdd(reinterpret_cast<unsigned long long*>(address), static_cast<unsigned long long>(value)));
}
template <class T> EXL_DEVICE T atomic_max(T* address, T value) {
#if defined(EXL_HIP)
    return __hip_atomic_fetch_max(address, value, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
#else
    using word = ticket::word<T>;
    return static_cast<T>(atomicMax(reinterpret_cast<word*>(address), static_cast<word>(value)));
#endif
}
// Returns what stood there: equal to `expected` if `desired` was stored.
EXL_DEVICE uint32_t atomic_compare_and_swap(uint32_t* address, uint32_t expected, uint32_t desired) {
    return atomicCAS(reinterpret_cast<unsigned*>(address), expected, desired);
}
EXL_DEVICE uint64_t atomic_compare_and_swap(uint64_t* address, uint64_t expected, uint64_t desired) {
    return atomicCAS(reinterpret_cast<unsigned long long*>(address), static_cast<unsigned long long>(expected),
                     static_cast<unsigned long long>(desired));
}
// Orders this thread's accesses to global memory for all threads of the device.
EXL_DEVICE void fence() { __threadfence(); }

namespace ticket {
// The fences on both sides make it acquire and release what this thread and, after a barrier, its block wrote.
EXL_DEVICE uint32_t take(uint32_t* counter) {
    __threadfence();
    const uint32_t number = atomicAdd(reinterpret_cast<unsigned*>(counter), 1u);
    __threadfence();
    return number;
}
}  // namespace ticket

// What other blocks have written during this launch, past caches that may be stale.
template <class T> EXL_DEVICE T load_coherent(const T* address) {
#if defined(EXL_CUDA)
    return __ldcg(address);
#else
    static_assert(sizeof(T) % 4 == 0, "4 bytes at a time");
    uint32_t words[sizeof(T) / 4];
    for (size_t i = 0; i < sizeof(T) / 4; i++)
        words[i] = __hip_atomic_load(reinterpret_cast<const uint32_t*>(address) + i, __ATOMIC_RELAXED,
                                     __HIP_MEMORY_SCOPE_AGENT);
    T value;
    memcpy(&value, words, sizeof value);
    return value;
#endif
}

#endif

// True in all threads of the block that is the last of `blocks` to call it; that block then sees everything that the
// others wrote before they called. All threads of the block must call it.
EXL_DEVICE bool last_block_arrives(uint32_t* counter, uint32_t blocks) {
    EXL_SHARED(uint32_t, number, [1]);
#if !defined(EXL_EMU)
    __threadfence();  // each thread's own writes; the emulator's barrier and ticket carry them along
#endif
    __syncthreads();
    if (threadIdx.x == 0) {
        number[0] = ticket::take(counter);
        if (number[0] == blocks - 1) *counter = 0;  // nobody else looks at it in this launch any more
    }
    __syncthreads();
    return number[0] == blocks - 1;
}

}  // namespace exl
