// The paged cache of one layer, the rows of a batch, and copies of pages.
//
// Layout of a page: layouts/kv_page.h.
#pragma once

#include "exl/portability.h"
#include "exl/types.h"

typedef struct exl_kv_cache {
    void* keys;            // pages, 16-byte aligned
    void* values;
    int32_t num_kv_heads;
    int32_t head_dim;      // 16, 32, 64, 80, 96, 128 or 256; 16 only where nothing is packed
    int32_t key_bits;      // 16 for fp16, or 2 to 8
    int32_t value_bits;
} exl_kv_cache;

// What follows from the numbers of a cache.
typedef struct exl_kv_geometry {
    int32_t
        padded_dim;  // features of a head as stored, and as rotated queries have: head_dim or the next multiple of 32
    int64_t key_page_bytes;
    int64_t value_page_bytes;
} exl_kv_geometry;

// The rows (tokens) of a launch. The arrays are in device memory and may change between launches. Rows of one sequence
// are neighbours, their positions strictly increasing. A row whose position is negative, or beyond its page table, is
// padding: nothing is read or written for it.
typedef struct exl_rows {
    int32_t count;
    int32_t pages_per_sequence;
    const int32_t* positions;  // (count,)
    const int32_t* sequences;  // (count,) row of the page table
    const int32_t* page_table;  // (S, pages_per_sequence) page of positions 256 i .. 256 i + 255
} exl_rows;

// exl_bad_shape or exl_bad_dtype for a cache that no kernel reads; its pointers are not looked at.
EXL_API exl_status exl_kv_cache_geometry(const exl_kv_cache* cache, exl_kv_geometry* geometry);

typedef struct exl_copy_pages_args {
    void* pages;  // 16-byte aligned
    int64_t page_bytes;  // a multiple of 16
    const int32_t* pairs;  // (num_pairs, 2) in device memory: page read, page written; none is written and read
    int32_t num_pairs;
} exl_copy_pages_args;

// pages[pairs[i][1]] = pages[pairs[i][0]], for prefixes that sequences share up to the middle of a page.
EXL_API exl_status exl_copy_pages(const exl_copy_pages_args* args, exl_stream stream);

namespace exl {
namespace kv {

exl_status check_cache(const exl_kv_cache& cache);  // its numbers and its pointers
exl_status check_rows(const exl_rows& rows);

}  // namespace kv
}  // namespace exl
