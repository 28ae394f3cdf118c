// Memory of one invented device: limited, poisoned, guarded on both sides.
//
// What is allocated and what is freed holds 0xff bytes, NaN in half, bfloat16 and float. Without AddressSanitizer the
// bytes around an allocation are checked after every operation; with it, it watches each access by itself.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>

namespace exl::emulator {

class Memory {
 public:
    explicit Memory(int64_t total) : total_(total) {}
    ~Memory();
    Memory(const Memory&) = delete;

    int64_t total() const { return total_; }
    int64_t free() const { return total_ - used_; }
    bool empty() const { return allocations_.empty(); }

    // Null if it does not fit.
    void* allocate(int64_t bytes);
    // False if `memory` was not allocated here or is already freed.
    bool release(void* memory);
    // "" or how the range of `bytes` from `address`, which starts in one of the allocations, leaves it.
    std::string check_range(const void* address, int64_t bytes) const;
    // "" or which allocation was written outside its bounds.
    std::string check_red_zones() const;

    static constexpr int64_t alignment = 256;

 private:
    struct Allocation {
        char* base;
        int64_t bytes;
    };
    static int64_t charged(int64_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }
    static void destroy(const Allocation& allocation);

    const int64_t total_;
    int64_t used_ = 0;
    std::map<const char*, Allocation> allocations_;  // by the first usable byte
    std::deque<Allocation> freed_;                   // still mapped, so that a late reader finds NaN
    int64_t freed_bytes_ = 0;
};

}  // namespace exl::emulator
