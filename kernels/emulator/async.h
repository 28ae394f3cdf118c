// Asynchronous copies of one thread. The destination holds NaN from the issue of a copy until the wait for it, so a
// kernel that reads too early computes NaN.
#pragma once

#include <vector>

namespace exl::emulator {

struct AsyncCopy {
    void* to;
    const void* from;  // null: zeros
};

struct AsyncCopies {
    std::vector<AsyncCopy> open;                 // issued, not committed
    std::vector<std::vector<AsyncCopy>> groups;  // committed, oldest first
    std::vector<AsyncCopy> landed;               // handed out by the last wait

    bool empty() const { return open.empty() && groups.empty(); }
    void clear() { open.clear(), groups.clear(), landed.clear(); }
};

// For the bodies of exl/async_copy.h. take() ends all groups but the `pending` youngest and returns their copies, which
// the caller performs, so that sanitizers see them as the kernel's own accesses.
void issue(AsyncCopy copy);
void commit();
const std::vector<AsyncCopy>& take(int pending);

}  // namespace exl::emulator
