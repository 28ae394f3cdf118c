#include "memory.h"

#include <algorithm>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#else
#include <cstring>
#endif

namespace exl::cpu {

namespace {

constexpr size_t huge_page = size_t(2) << 20;
constexpr size_t shared_region = size_t(32) << 20;

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

class Region {
 public:
    explicit Region(size_t bytes) : bytes_(round_up(bytes, 4096)) {
#if defined(__linux__)
        // Mapped with room to align, then the ends are given back.
        void* p = mmap(nullptr, bytes_ + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
        const uintptr_t start = reinterpret_cast<uintptr_t>(p), aligned = round_up(start, huge_page);
        data_ = reinterpret_cast<uint8_t*>(aligned);
        if (aligned > start) munmap(p, aligned - start);
        if (const size_t rest = start + huge_page - aligned) munmap(data_ + bytes_, rest);
        madvise(data_, bytes_, MADV_HUGEPAGE);
#else
        data_ = static_cast<uint8_t*>(::operator new(bytes_, std::align_val_t(64)));
        std::memset(data_, 0, bytes_);
#endif
    }
    ~Region() {
#if defined(__linux__)
        munmap(data_, bytes_);
#else
        ::operator delete(data_, std::align_val_t(64));
#endif
    }
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;

    // The next unused part, or null when there is not enough of it.
    uint8_t* cut(size_t bytes) {
        if (bytes > bytes_ - used_) return nullptr;
        uint8_t* part = data_ + used_;
        used_ += round_up(bytes, 64);
        return part;
    }

 private:
    size_t bytes_, used_ = 0;
    uint8_t* data_;
};

Memory::Memory(size_t bytes) : bytes_(std::max<size_t>(bytes, 1)) {
    if (bytes_ >= huge_page) {
        region_ = std::make_shared<Region>(bytes_);
        data_ = region_->cut(bytes_);
        return;
    }
    static std::mutex mutex;
    static std::weak_ptr<Region> current;  // its users keep it, so the last of them gives it back
    const std::lock_guard lock(mutex);
    region_ = current.lock();
    data_ = region_ ? region_->cut(bytes_) : nullptr;
    if (data_) return;
    current = region_ = std::make_shared<Region>(shared_region);
    data_ = region_->cut(bytes_);
}

}  // namespace exl::cpu
