// Zeroed, page-aligned memory for weights and cache pages; pages that are never touched cost nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#else
#include <cstring>
#endif

namespace exl::cpu {

class Memory {
 public:
    explicit Memory(size_t bytes) : bytes_(bytes ? bytes : 1) {
#if defined(__linux__)
        void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
        if (bytes_ >= (size_t(4) << 20)) madvise(p, bytes_, MADV_HUGEPAGE);
        data_ = static_cast<uint8_t*>(p);
#else
        data_ = static_cast<uint8_t*>(::operator new(bytes_, std::align_val_t(64)));
        std::memset(data_, 0, bytes_);
#endif
    }
    ~Memory() {
#if defined(__linux__)
        munmap(data_, bytes_);
#else
        ::operator delete(data_, std::align_val_t(64));
#endif
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    uint8_t* data() const { return data_; }
    size_t size() const { return bytes_; }

 private:
    size_t bytes_;
    uint8_t* data_;
};

}  // namespace exl::cpu
