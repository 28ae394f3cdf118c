// What one core can do at most, measured: the denominators of every roofline figure.
#pragma once

#include <chrono>

#include "amx.h"

namespace EXL_ISA {

// Reads all of it, a multiple of 512 bytes, as two streams, which is faster than one. Returns something that depends on it.
int32_t read_all(const uint8_t* data, int64_t bytes) {
    i32v sum[4];
    for (int j = 0; j < 4; ++j) sum[j] = i_zero();
    for (int64_t i = 0; i < bytes / 2; i += 256)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const uint8_t* p = data + i + 64 * j;
            sum[j] = i_or(sum[j], i_or(i_load(p), i_load(p + bytes / 2)));
        }
    return i_sum(i_or(i_or(sum[0], sum[1]), i_or(sum[2], sum[3])));
}

// Operations per second (a multiply and an add are two) of int8 dot products on registers alone.
double int8_peak(Worker& worker) {
    (void)worker;
    constexpr int rounds = 100000;
    double best = 0;
    for (int attempt = 0; attempt < 5; ++attempt) {
        const auto start = std::chrono::steady_clock::now();
        double operations;
#if EXL_LEVEL >= 4
        alignas(64) static const uint8_t zeros[1024] = {};
        configure_tiles(worker, 16, 64);
        tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
        tile_load<4>(zeros, 64), tile_load<5>(zeros, 64), tile_load<6>(zeros, 64), tile_load<7>(zeros, 64);
        for (int i = 0; i < rounds; ++i)
            tile_dot_su<0, 4, 6>(), tile_dot_su<1, 5, 7>(), tile_dot_su<2, 5, 6>(), tile_dot_su<3, 4, 7>();
        operations = 4.0 * 2 * 16 * 16 * 64 * rounds;
#else
        i32v sum[16];
        for (int j = 0; j < 16; ++j) sum[j] = i_set(j);
        const i32v codes = i8_set(3), activations = i8_set(-2);
        for (int i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
            for (int j = 0; j < 16; ++j) sum[j] = dot_u7s8(sum[j], codes, activations);
            asm volatile("" ::: "memory");
        }
        volatile int32_t sink = 0;
        for (int j = 0; j < 16; ++j) sink = sink + i_sum(sum[j]);
        operations = 16.0 * 2 * 64 * rounds;
#endif
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        best = operations / seconds.count() > best ? operations / seconds.count() : best;
    }
    return best;
}

}  // namespace EXL_ISA
