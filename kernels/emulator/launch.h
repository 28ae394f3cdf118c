// Runs the blocks of one launch, on several OS threads.
#pragma once

#include <string>

#include "emulator/block.h"

namespace exl::emulator {

struct LaunchOptions {
    Order order = Order::forward;  // of the threads in a block, and of the blocks
    uint64_t seed = 0;             // of the random order
    int workers = 0;               // OS threads; 0: one for each processor
};

// Runs the launch to its end. Returns "" or what is wrong with it or went wrong in it.
std::string run(const Launch& launch, const Limits& limits, const LaunchOptions& options);

}  // namespace exl::emulator
