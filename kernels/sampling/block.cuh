// Reductions and searches of one block over a row of numbers.
#pragma once

#include "exl/bits.h"
#include "exl/half.h"
#include "exl/ticket.h"
#include "exl/warp.h"

namespace exl {
namespace sampling {

constexpr int threads = 512, num_groups = threads / group_size;

// Combines a value of every thread; every thread gets the result. combine must not depend on the order.
template <class T, class Combine> EXL_DEVICE T block_reduce(T value, Combine combine) {
    EXL_SHARED(T, parts, [num_groups]);
#pragma unroll
    for (int distance = group_size / 2; distance > 0; distance /= 2)
        value = combine(value, shuffle_xor(value, distance));
    __syncthreads();  // the parts of an earlier call have been read
    if (lane() == 0) parts[group()] = value;
    __syncthreads();
    T result = parts[0];
    for (int i = 1; i < num_groups; i++) result = combine(result, parts[i]);
    return result;
}
EXL_DEVICE uint64_t block_sum(uint64_t value) {
    return block_reduce(value, [](uint64_t a, uint64_t b) { return a + b; });
}
EXL_DEVICE float block_max(float value) {
    return block_reduce(value, [](float a, float b) { return a > b ? a : b; });
}

// Calls f(i) for every index of a row, shared out among the threads.
template <class F> EXL_DEVICE void each(int count, F f) {
    for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) f(i);
}

// Larger numbers have larger keys; -0 and 0 have the same, no NaN comes here.
EXL_DEVICE uint32_t key_of(float x) {
    const uint32_t word = bit_cast<uint32_t>(x + 0.0f);
    return word & 0x80000000u ? ~word : word | 0x80000000u;
}

// How many tokens, and their weight.
struct Amount {
    uint64_t count, weight;

    EXL_DEVICE Amount operator+(Amount other) const { return {count + other.count, weight + other.weight}; }
};

// Amounts of 256 digits.
struct Bins {
    uint64_t counts[256], weights[256];

    EXL_DEVICE void clear() {
        each(256, [&](int i) { counts[i] = weights[i] = 0; });
    }
    EXL_DEVICE void add(uint32_t digit, uint64_t weight) {
        atomic_add(&counts[digit], uint64_t(1));
        atomic_add(&weights[digit], weight);
    }
    EXL_DEVICE Amount operator[](int digit) const { return {counts[digit], weights[digit]}; }
};

struct Digit {
    uint32_t digit;
    Amount before;  // all larger digits, and what was before them
};

// The largest digit at which reached(everything down to it) holds, the lowest digit if none does. `before`: what
// precedes all of them. The first group of lanes searches, each lane 8 digits.
template <class Reached> EXL_DEVICE Digit find_digit(const Bins& bins, Amount before, Reached reached) {
    EXL_SHARED(Digit, found, [1]);
    constexpr int mine = 256 / group_size;
    if (group() == 0) {
        Amount own = {0, 0};
        for (int i = 0; i < mine; i++) own = own + bins[255 - lane() * mine - i];
        Amount until = own;
        for (int distance = 1; distance < group_size; distance *= 2) {
            const Amount other = {shuffle_up(until.count, distance), shuffle_up(until.weight, distance)};
            if (lane() >= distance) until = until + other;
        }
        const uint32_t lanes = ballot(reached(before + until));
        const int chosen = lanes ? 31 - leading_zeros(lanes & (0u - lanes)) : group_size - 1;
        if (lane() == chosen) {
            Amount sum = before + until;
            sum = {sum.count - own.count, sum.weight - own.weight};
            uint32_t digit = static_cast<uint32_t>(255 - lane() * mine);
            for (int i = 1; i < mine && !reached(sum + bins[static_cast<int>(digit)]); i++)
                sum = sum + bins[static_cast<int>(digit--)];
            found[0] = {digit, sum};
        }
    }
    __syncthreads();
    return found[0];
}

}  // namespace sampling
}  // namespace exl
