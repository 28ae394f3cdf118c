// The stream of token tiles that a block reads: of each of its pages the tiles of keys, then those of values, fetched two
// tiles ahead into three stages of shared memory.
#pragma once

#include "attention/tile.cuh"

namespace exl {
namespace attention {

template <int dim, bool packed> class Pipeline {
 public:
    static constexpr int tokens = tile_tokens(dim);

    // Of the tile's pages, `first`, first + step, ...
    EXL_DEVICE Pipeline(const exl_attention_args& args, const exl_kv_geometry& geometry, const QueryTile& tile,
                        uint8_t* memory, int stage_bytes, int first, int step)
        : args_(args),
          geometry_(geometry),
          tile_(tile),
          memory_(memory),
          stage_bytes_(stage_bytes),
          page_(first),
          step_(step) {
        open_page();
        for (int i = 0; i < stages - 1; i++) fetch();
    }

    // The next tile, arrived and seen by all threads; valid until the next call, which all threads must make together.
    EXL_DEVICE const uint8_t* next() {
        copy_async_wait<stages - 2>();
        __syncthreads();
        const uint8_t* stage = memory_ + read_ * stage_bytes_;
        read_ = after(read_);
        fetch();
        return stage;
    }

 private:
    EXL_DEVICE static int after(int stage) { return stage + 1 == stages ? 0 : stage + 1; }

    EXL_DEVICE void open_page() {
        if (page_ * exl_page_size > tile_.highest) return;
        span_ = visible(tile_.lowest, tile_.highest, args_.window, page_);
        number_ = static_cast<int>(kv::page_of(args_.rows, tile_.sequence, page_));
        item_ = span_.begin / tokens;
        keys_ = true;
    }

    // Issues the next tile, if there is one; every call is one group of copies.
    EXL_DEVICE void fetch() {
        if (page_ * exl_page_size <= tile_.highest) {
            const exl_kv_cache& cache = args_.cache;
            const int bits = keys_ ? cache.key_bits : cache.value_bits;
            const uint8_t* page = static_cast<const uint8_t*>(keys_ ? cache.keys : cache.values) +
                                  number_ * (keys_ ? geometry_.key_page_bytes : geometry_.value_page_bytes);
            const uint8_t* codes = page + kv::head_codes(dim, bits, tile_.kv_head);
            const uint8_t* scales = page + kv::head_scales(dim, bits, cache.num_kv_heads, tile_.kv_head);
            const int count = span_.end - item_ * tokens;
            uint8_t* stage = memory_ + written_ * stage_bytes_;
            by_bits<packed>(bits, [&](auto b) { TokenTile<dim, b.value>::fetch(stage, codes, scales, item_, count); });
            written_ = after(written_);
            advance();
        }
        copy_async_commit();
    }

    EXL_DEVICE void advance() {
        if (++item_ * tokens < span_.end) return;
        item_ = span_.begin / tokens;
        keys_ = !keys_;
        if (!keys_) return;
        page_ += step_;
        open_page();
    }

    const exl_attention_args& args_;
    const exl_kv_geometry& geometry_;
    const QueryTile& tile_;
    uint8_t* memory_;
    const int stage_bytes_;
    int page_, step_;
    int number_ = 0;
    Span span_ = {0, 0};
    int item_ = 0, read_ = 0, written_ = 0;
    bool keys_ = true;
};

}  // namespace attention
}  // namespace exl
