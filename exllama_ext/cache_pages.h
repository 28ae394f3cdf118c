// The pages of a layer's cache as Python sees them.
#pragma once

#include <cstring>
#include <memory>

#include "arguments.h"
#include "cpu/memory.h"

namespace exl::cpu {

// Pages of one layer and the memory they live in.
class CachePages {
 public:
    CachePages(int64_t pages, int32_t kv_heads, int32_t head_dim, int32_t key_bits, int32_t value_bits)
        : pages_(pages) {
        const auto valid = [](int32_t bits) { return bits == half_bits || (bits >= 2 && bits <= 8); };
        require(pages > 0 && kv_heads > 0 && head_dim > 0 && valid(key_bits) && valid(value_bits),
                "cache shape out of range");
        require(head_dim % 16 == 0, "head_dim must be a multiple of 16");
        const auto bytes = [&](int32_t bits) {
            const int64_t values = int64_t(kv_heads) * padded_dim(cache_) * page_size;
            return bits == half_bits ? values * 2 : values * bits / 8 + values / 32 * 2;
        };
        cache_ = {nullptr, nullptr, 0, 0, kv_heads, head_dim, key_bits, value_bits};
        cache_.key_page_bytes = bytes(key_bits);
        cache_.value_page_bytes = bytes(value_bits);
        keys_ = std::make_unique<Memory>(size_t(pages * cache_.key_page_bytes));
        values_ = std::make_unique<Memory>(size_t(pages * cache_.value_page_bytes));
        cache_.keys = keys_->data();
        cache_.values = values_->data();
    }
    const LayerCache& cache() const { return cache_; }
    int64_t pages() const { return pages_; }
    int64_t nbytes() const { return pages_ * (cache_.key_page_bytes + cache_.value_page_bytes); }
    void copy_page(int64_t source, int64_t target) {
        check(source);
        check(target);
        std::memmove(cache_.keys + target * cache_.key_page_bytes, cache_.keys + source * cache_.key_page_bytes,
                     size_t(cache_.key_page_bytes));
        std::memmove(cache_.values + target * cache_.value_page_bytes, cache_.values + source * cache_.value_page_bytes,
                     size_t(cache_.value_page_bytes));
    }
    // (pages, bytes of a page) of keys and of values: the memory itself, kept alive by `self`.
    static py::tuple memory(const py::object& self) {
        const CachePages& c = self.cast<const CachePages&>();
        const auto view = [&](uint8_t* p, int64_t n) { return py::array_t<uint8_t>({c.pages_, n}, p, self); };
        return py::make_tuple(view(c.cache_.keys, c.cache_.key_page_bytes),
                              view(c.cache_.values, c.cache_.value_page_bytes));
    }

 private:
    void check(int64_t page) const { require(page >= 0 && page < pages_, "page out of range"); }
    int64_t pages_;
    LayerCache cache_{};
    std::unique_ptr<Memory> keys_, values_;
};

}  // namespace exl::cpu
