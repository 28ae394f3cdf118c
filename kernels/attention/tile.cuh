// Tiles: of query vectors, and of tokens in shared memory.
#pragma once

#include "attention/attention.h"
#include "attention/codes.cuh"
#include "cache/rows.cuh"
#include "exl/async_copy.h"
#include "layouts/kv_page.h"

namespace exl {
namespace attention {

constexpr int num_groups = 4, threads = num_groups * group_size;
constexpr int max_queries = 16;
constexpr int stages = 3;

EXL_HOST_DEVICE int heads_per_tile(int group_heads) { return group_heads < max_queries ? group_heads : max_queries; }
// Parts of the query heads of a kv head, each of at most 16.
EXL_HOST_DEVICE int parts_per_kv_head(int group_heads) { return (group_heads + max_queries - 1) / max_queries; }

// Vector v is row first_row + v / num_heads, head first_head + v % num_heads.
struct QueryTile {
    int first_row, num_rows, sequence, highest;  // the last position
    int lowest;                                  // the first position
    int kv_head, first_head, num_heads;

    EXL_DEVICE int num_vectors() const { return num_rows * num_heads; }
    EXL_DEVICE int row(int vector) const { return first_row + vector / num_heads; }
    EXL_DEVICE int head(int vector) const { return first_head + vector % num_heads; }
};

// True if `row` follows a row of the same tile of rows_per_tile positions.
EXL_DEVICE bool continues(const exl_rows& rows, int row, int rows_per_tile) {
    const int position = kv::position_of(rows, row), before = kv::position_of(rows, row - 1);
    return position >= 0 && before >= 0 && rows.sequences[row] == rows.sequences[row - 1] &&
           position / rows_per_tile == before / rows_per_tile;
}

// The tile that starts at row blockIdx.x; false: none does.
EXL_DEVICE bool open_tile(const exl_attention_args& args, QueryTile& tile) {
    const int group_heads = args.num_heads / args.cache.num_kv_heads, parts = parts_per_kv_head(group_heads);
    const int rows_per_tile = max_queries / heads_per_tile(group_heads), row = static_cast<int>(blockIdx.x);
    tile.lowest = kv::position_of(args.rows, row);
    if (tile.lowest < 0 || (row > 0 && continues(args.rows, row, rows_per_tile))) return false;
    tile.first_row = row;
    tile.num_rows = 1;
    while (tile.num_rows < rows_per_tile && row + tile.num_rows < args.rows.count &&
           continues(args.rows, row + tile.num_rows, rows_per_tile))
        tile.num_rows++;
    tile.highest = kv::position_of(args.rows, row + tile.num_rows - 1);
    tile.sequence = args.rows.sequences[row];
    const int part = static_cast<int>(blockIdx.y) % parts;
    tile.kv_head = static_cast<int>(blockIdx.y) / parts;
    tile.first_head = tile.kv_head * group_heads + part * max_queries;
    tile.num_heads = group_heads - part * max_queries < max_queries ? group_heads - part * max_queries : max_queries;
    return true;
}

// Tokens [begin, end) of a page.
struct Span {
    int begin, end;
};

// What positions lowest .. highest see of a page, all of them together.
EXL_DEVICE Span visible(int lowest, int highest, int window, int page) {
    const int start = page * exl_page_size, oldest = window > 0 ? lowest - window + 1 : 0;
    const int end = highest + 1 - start < exl_page_size ? highest + 1 - start : exl_page_size;
    const int begin = oldest > start ? oldest - start : 0;
    return {begin, end > begin ? end : begin};
}

EXL_DEVICE int first_page(const QueryTile& tile, int window) {
    const int oldest = window > 0 ? tile.lowest - window + 1 : 0;
    return oldest > 0 ? oldest / exl_page_size : 0;
}

// Tokens a stage holds. 64 rows of 256 fp16 features would not leave room for three stages in 64 KiB.
EXL_HOST_DEVICE constexpr int tile_tokens(int dim) { return dim == 256 ? 32 : 64; }

// One tile of keys or values of one head in shared memory: rows, then scales [token][group].
template <int dim, int code_bits> struct TokenTile {
    static constexpr int tokens = tile_tokens(dim), groups = dim / kv::group_features;
    static constexpr int row = kv::row_bytes(dim, code_bits);
    // Rows that start an odd number of 16 bytes apart fall into different banks. Rows that are no multiple of 16 bytes must
    // stay as they are, copied across their borders.
    static constexpr int padding = row % 16 == 0 && row / 16 % 2 == 0 ? 16 : 0;
    static constexpr int stride = row + padding;
    static constexpr int scales = tokens * stride;
    static constexpr int scale_bytes = code_bits == kv::half_bits ? 0 : tokens * groups * 2;
    static constexpr int bytes = scales + scale_bytes;
    static constexpr int copies = dim == 256 ? 1 : 4;  // issued in one go: where registers are scarce, one
    static_assert(tokens * row % 16 == 0 && scales % 16 == 0 && scale_bytes % 16 == 0, "16 bytes at a time");

    // Issues the copies of the tile's first `count` tokens, and zeros in place of the others. page: the head's part.
    EXL_DEVICE static void fetch(uint8_t* stage, const uint8_t* codes, const uint8_t* page_scales, int tile,
                                 int count) {
        const uint8_t* from = codes + tile * tokens * row;
#pragma unroll(copies)
        for (int at = 16 * static_cast<int>(threadIdx.x); at < tokens * row; at += 16 * threads)
            copy_async(stage + at + (padding ? at / row * padding : 0), from + at, at < count * row);
        from = page_scales + tile * scale_bytes;
        for (int at = 16 * static_cast<int>(threadIdx.x); at < scale_bytes; at += 16 * threads)
            copy_async(stage + scales + at, from + at, at < count * groups * 2);
    }
};

// Calls f(Constant<code_bits>).
template <bool packed, class F> EXL_DEVICE void by_bits(int code_bits, F f) {
    if constexpr (packed) {
        switch (code_bits) {
            case 2: return f(Constant<2>{});
            case 3: return f(Constant<3>{});
            case 4: return f(Constant<4>{});
            case 5: return f(Constant<5>{});
            case 6: return f(Constant<6>{});
            case 7: return f(Constant<7>{});
            case 8: return f(Constant<8>{});
            default: break;
        }
    }
    f(Constant<kv::half_bits>{});
}

}  // namespace attention
}  // namespace exl
