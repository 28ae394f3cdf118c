#include "emulator/memory.h"

#include <cstdlib>
#include <cstring>

#include "emulator/sanitizer.h"

namespace exl::emulator {

namespace {

constexpr int poison = 0xff, guard = 0xa5;
constexpr int64_t kept_after_free = 64 << 20;
#if defined(EXL_ASAN)
constexpr int64_t red_zone = 0;  // AddressSanitizer has its own
#else
constexpr int64_t red_zone = Memory::alignment;
#endif

// The first byte of a red zone that no longer holds its pattern, or -1.
int64_t first_change(const char* zone) {
    for (int64_t i = 0; i < red_zone; i++)
        if (static_cast<unsigned char>(zone[i]) != guard) return i;
    return -1;
}

}  // namespace

Memory::~Memory() {
    for (const auto& [data, allocation] : allocations_) destroy(allocation);
    for (const Allocation& allocation : freed_) destroy(allocation);
}

void Memory::destroy(const Allocation& allocation) { std::free(allocation.base); }

void* Memory::allocate(int64_t bytes) {
    if (charged(bytes) > free()) return nullptr;
    void* base = nullptr;
    if (posix_memalign(&base, alignment, static_cast<size_t>(bytes + 2 * red_zone))) return nullptr;
    char* data = static_cast<char*>(base) + red_zone;
    std::memset(base, guard, static_cast<size_t>(red_zone));
    std::memset(data, poison, static_cast<size_t>(bytes));
    std::memset(data + bytes, guard, static_cast<size_t>(red_zone));
    allocations_[data] = {static_cast<char*>(base), bytes};
    used_ += charged(bytes);
    return data;
}

bool Memory::release(void* memory) {
    const auto found = allocations_.find(static_cast<char*>(memory));
    if (found == allocations_.end()) return false;
    const Allocation allocation = found->second;
    allocations_.erase(found);
    used_ -= charged(allocation.bytes);
    std::memset(memory, poison, static_cast<size_t>(allocation.bytes));
#if defined(EXL_ASAN)
    destroy(allocation);
#else
    freed_.push_back(allocation);
    freed_bytes_ += allocation.bytes;
    while (freed_bytes_ > kept_after_free) {
        freed_bytes_ -= freed_.front().bytes;
        destroy(freed_.front());
        freed_.pop_front();
    }
#endif
    return true;
}

std::string Memory::check_range(const void* address, int64_t bytes) const {
    const char* start = static_cast<const char*>(address);
    auto found = allocations_.upper_bound(start);
    if (found == allocations_.begin()) return "";
    --found;
    const int64_t offset = start - found->first, size = found->second.bytes;
    if (offset >= size || offset + bytes <= size) return "";
    return std::to_string(bytes) + " bytes from byte " + std::to_string(offset) + " of an allocation of " +
           std::to_string(size);
}

std::string Memory::check_red_zones() const {
    for (const auto& [data, allocation] : allocations_) {
        const std::string of = " of an allocation of " + std::to_string(allocation.bytes) + " bytes";
        if (const int64_t i = first_change(data + allocation.bytes); i >= 0)
            return "a write " + std::to_string(i) + " bytes behind the end" + of;
        if (const int64_t i = first_change(data - red_zone); i >= 0)
            return "a write " + std::to_string(red_zone - i) + " bytes before the start" + of;
    }
    return "";
}

}  // namespace exl::emulator
