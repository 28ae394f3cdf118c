// Collectives of the 32 lanes of a group. All lanes of the group must take part, none may have left the kernel.
//
// A shuffle orders no memory: data that goes through shared memory from lane to lane needs sync_warp() between the
// write and the read.
#pragma once

#include "exl/portability.h"

#include <string.h>

namespace exl {

// This thread's lane, 0..31, and its group within the block.
EXL_DEVICE int lane() { return static_cast<int>(threadIdx.x) & (group_size - 1); }
EXL_DEVICE int group() { return static_cast<int>(threadIdx.x) / group_size; }

namespace warp {

#if defined(EXL_EMU)
EXL_DEVICE uint32_t shuffle32(uint32_t value, int source) { return emulator::shuffle(value, source); }
EXL_DEVICE uint32_t shuffle_xor32(uint32_t value, int mask) { return emulator::shuffle(value, lane() ^ mask); }
EXL_DEVICE uint32_t ballot32(bool predicate) { return emulator::ballot(predicate); }
EXL_DEVICE void sync() { emulator::sync_warp(); }
#elif defined(EXL_HIP)
// Maskless on purpose: the masked forms of HIP loop until a 64-bit mask has converged, which has hung kernels.
EXL_DEVICE uint32_t shuffle32(uint32_t value, int source) {
    const int wave_lane = static_cast<int>(__builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0u)));
    const int from = (wave_lane & ~(group_size - 1)) | source;
    return static_cast<uint32_t>(__builtin_amdgcn_ds_bpermute(from * 4, static_cast<int>(value)));
}
EXL_DEVICE uint32_t shuffle_xor32(uint32_t value, int mask) { return shuffle32(value, lane() ^ mask); }
EXL_DEVICE uint32_t ballot32(bool predicate) {
    const uint64_t wave = __ballot(predicate);
    const int wave_lane = static_cast<int>(__builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0u)));
    return static_cast<uint32_t>(wave >> (wave_lane & ~(group_size - 1)));
}
EXL_DEVICE void sync() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
    __builtin_amdgcn_wave_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}
#else
constexpr uint32_t all_lanes = 0xffffffffu;
EXL_DEVICE uint32_t shuffle32(uint32_t value, int source) { return __shfl_sync(all_lanes, value, source); }
EXL_DEVICE uint32_t shuffle_xor32(uint32_t value, int mask) { return __shfl_xor_sync(all_lanes, value, mask); }
EXL_DEVICE uint32_t ballot32(bool predicate) { return __ballot_sync(all_lanes, predicate); }
EXL_DEVICE void sync() { __syncwarp(); }
#endif

// Moves a value of 4 or 8 bytes, word by word.
template <uint32_t (*move)(uint32_t, int), class T> EXL_DEVICE T exchange(T value, int operand) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    uint32_t words[sizeof(T) / 4];
    memcpy(words, &value, sizeof(T));
    for (uint32_t& word : words) word = move(word, operand);
    memcpy(&value, words, sizeof(T));
    return value;
}

}  // namespace warp

// Shared-memory writes of the group's lanes before it are seen by its lanes after it.
EXL_DEVICE void sync_warp() { warp::sync(); }

// The value of lane `source`, counted within this lane's part of `width` lanes (a power of two).
template <class T> EXL_DEVICE T shuffle(T value, int source, int width = group_size) {
    return warp::exchange<warp::shuffle32>(value, (lane() & ~(width - 1)) | (source & (width - 1)));
}

// The value of the lane whose number differs in the bits of `mask`, 0..31.
template <class T> EXL_DEVICE T shuffle_xor(T value, int mask) {
    return warp::exchange<warp::shuffle_xor32>(value, mask);
}

// The value of the lane `distance` above (down) or below (up); a lane without such a neighbour in its part of `width`
// lanes gets its own value.
template <class T> EXL_DEVICE T shuffle_down(T value, int distance, int width = group_size) {
    const int place = lane() & (width - 1);
    return warp::exchange<warp::shuffle32>(value, place + distance < width ? lane() + distance : lane());
}
template <class T> EXL_DEVICE T shuffle_up(T value, int distance, int width = group_size) {
    const int place = lane() & (width - 1);
    return warp::exchange<warp::shuffle32>(value, place >= distance ? lane() - distance : lane());
}

// Bit i is the predicate of lane i.
EXL_DEVICE uint32_t ballot(bool predicate) { return warp::ballot32(predicate); }
EXL_DEVICE bool any(bool predicate) { return warp::ballot32(predicate) != 0; }
EXL_DEVICE bool all(bool predicate) { return warp::ballot32(predicate) == 0xffffffffu; }

// Sum and maximum over the lane's part of `width` lanes, in every lane of it. The order of additions is fixed.
template <int width = group_size, class T> EXL_DEVICE T warp_sum(T value) {
    for (int distance = width / 2; distance > 0; distance /= 2) value = value + shuffle_xor(value, distance);
    return value;
}
template <int width = group_size, class T> EXL_DEVICE T warp_max(T value) {
    for (int distance = width / 2; distance > 0; distance /= 2) {
        const T other = shuffle_xor(value, distance);
        value = value > other ? value : other;
    }
    return value;
}

}  // namespace exl
