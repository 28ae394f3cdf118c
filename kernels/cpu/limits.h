// What this machine can do at most, measured: the denominators of every roofline figure.
#pragma once

#include "team.h"

namespace exl::cpu {

// Bytes per second that all workers together read from memory (buffers of `bytes` each, larger than the caches).
double read_bandwidth(Team& team, size_t bytes, int repeats);

}  // namespace exl::cpu
