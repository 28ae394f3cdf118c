// Rows of a file into the row blocks that the kernels read; bits and scales stay as they are.
#pragma once

#include <memory>
#include <string>

#include "exl_cpu.h"
#include "memory.h"

namespace exl::cpu {

// A weight and the memory it lives in. Rows not yet added are zero.
class PackedWeight {
 public:
    // type: Q4_0 .. Q6_K, or f32, f16, bf16. `as` (dense only): the type to hold, "" = the same.
    PackedWeight(const std::string& type, int64_t rows, int64_t cols, const std::string& as);
    virtual ~PackedWeight() = default;

    // raw: `count` rows of row_bytes() each, from the multiple of 16 `start` on. Throws std::invalid_argument.
    void add_rows(int64_t start, const uint8_t* raw, int64_t count);
    int64_t row_bytes() const { return row_bytes_; }
    size_t nbytes() const { return memory_->size(); }
    const Weight& weight() const { return weight_; }

 protected:
    PackedWeight() = default;
    Weight weight_{};
    std::unique_ptr<Memory> memory_;

 private:
    void (*pack_)(const PackedWeight&, uint8_t* block, int lane, const uint8_t* row) = nullptr;
    int64_t row_bytes_ = 0;
};

}  // namespace exl::cpu
