// Threads with their stacks, kept between launches: a stack costs a system call and a page fault each time.
#pragma once

#include <memory>
#include <vector>

#include "emulator/block.h"

namespace exl::emulator {

std::vector<std::unique_ptr<Thread>> take_threads(int count);
void give_threads(std::vector<std::unique_ptr<Thread>> threads);

// What ThreadSanitizer orders by: all that came before a launch, and the end of all its threads.
void* launch_start_token();
void* launch_end_token();

}  // namespace exl::emulator
