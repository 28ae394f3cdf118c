// What this machine can do at most, measured: the denominators of every roofline figure.
#pragma once

#include "exl_cpu.h"
#include "team.h"

namespace exl::cpu {

// Bytes per second that all workers together read from memory (`bytes` in all, more than the caches hold; the best of `repeats` passes).
double read_bandwidth(Team& team, const Kernels& kernels, size_t bytes, int repeats);

// Operations per second of int8 dot products, all workers at once.
double int8_peak(Team& team, const Kernels& kernels);

}  // namespace exl::cpu
