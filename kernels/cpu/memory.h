// Zeroed memory for weights, cache pages and buffers; pages that are never touched cost nothing.
//
// Large regions start on a 2 MiB boundary and ask for huge pages: streaming through 4 KiB pages costs a tenth of the
// bandwidth in address translation. Small ones are cut from shared regions of that kind.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace exl::cpu {

class Region;  // one mapping

class Memory {
 public:
    // 64-byte aligned; throws std::bad_alloc.
    explicit Memory(size_t bytes);
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    uint8_t* data() const { return data_; }
    size_t size() const { return bytes_; }

 private:
    size_t bytes_;
    std::shared_ptr<Region> region_;  // kept mapped until its last user is gone
    uint8_t* data_;
};

}  // namespace exl::cpu
