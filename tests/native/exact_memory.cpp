// exl::cpu::Memory for sanitizers: every region has exactly its size, so that the byte after it is out of bounds.
#include "cpu/memory.h"

#include <cstring>
#include <new>

namespace exl::cpu {

class Region {
 public:
    explicit Region(size_t bytes) : data(static_cast<uint8_t*>(::operator new(bytes, std::align_val_t(64)))) {
        std::memset(data, 0, bytes);
    }
    ~Region() { ::operator delete(data, std::align_val_t(64)); }
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;
    uint8_t* const data;
};

Memory::Memory(size_t bytes)
    : bytes_(bytes ? bytes : 1), region_(std::make_shared<Region>(bytes_)), data_(region_->data) {}

}  // namespace exl::cpu
