// How keys and values lie in the pages of the GPU cache. A page holds 256 tokens of one layer; keys and values have pages
// of their own, of the same form. Internal to the process: no file holds it.
//
//     fp16      [kv head][256 tokens][D] half
//     b bits    [kv head][256 tokens][D / 32][4 b bytes], then the scales [kv head][256 tokens][D / 32] half
//
// D is head_dim, rounded up to 32 (with zeros) where keys or values are packed. A group is 32 neighbouring features of one
// token, rotated by a Hadamard-32; its code q means (q - m + 1/2) / m * scale with m = 2^(b-1) (specs: kv_cache, 2 and 3).
//
//     codes of a group          8 | 4 | 2 | 1 bit planes, as the bits of b say, the low bits of the code in the first one
//                               b = 6:  [ 16 bytes: bits 0..3 ][ 8 bytes: bits 4..5 ]
//     a plane of w bits         slot s at bits [w s, w s + w), lowest first: w words
//     slot of feature f         4 (f % 8) + f / 8
//
//     4 bits   byte    0      1      2      3      4  ...          15
//                   [8 | 0][24|16] [9 | 1][25|17] [10| 2]  ...  [31|23]      high nibble | low nibble: the features
//
// Slots 4 q .. 4 q + 3, a quad, are features q, 8 + q, 16 + q, 24 + q. So a word of two neighbouring quads of a key, or a quad
// of two neighbouring tokens' values, unpacks into the operands of a matrix instruction in their natural order (matrix.h):
// lane (g, t) takes quads 2 t, 2 t + 1 of key g, and quad g of the values of tokens 2 t, 2 t + 1.
#pragma once

#include "exl/portability.h"
#include "exl/types.h"

namespace exl {
namespace kv {

constexpr int group_features = 32;
constexpr int half_bits = 16;

EXL_HOST_DEVICE constexpr bool is_packed(int bits) { return bits != half_bits; }
EXL_HOST_DEVICE constexpr int padded_dim(int head_dim, bool packed) {
    return packed ? (head_dim + group_features - 1) / group_features * group_features : head_dim;
}
EXL_HOST_DEVICE constexpr int group_bytes(int bits) { return group_features * bits / 8; }
EXL_HOST_DEVICE constexpr int row_bytes(int dim, int bits) { return dim * bits / 8; }

// The feature whose code stands in a slot.
EXL_HOST_DEVICE constexpr int feature_of_slot(int slot) { return 8 * (slot % 4) + slot / 4; }

// Where a plane of `width` bits starts in a group of codes, and which bit of the code is its lowest.
EXL_HOST_DEVICE constexpr int plane_low_bit(int bits, int width) { return bits & ~(2 * width - 1); }
EXL_HOST_DEVICE constexpr int plane_offset(int bits, int width) { return group_bytes(plane_low_bit(bits, width)); }

// Byte offsets in a page.
EXL_HOST_DEVICE constexpr int64_t head_codes(int dim, int bits, int kv_head) {
    return static_cast<int64_t>(kv_head) * exl_page_size * row_bytes(dim, bits);
}
EXL_HOST_DEVICE constexpr int64_t head_scales(int dim, int bits, int num_kv_heads, int kv_head) {
    return head_codes(dim, bits, num_kv_heads) +
           static_cast<int64_t>(kv_head) * exl_page_size * (dim / group_features) * 2;
}
EXL_HOST_DEVICE constexpr int64_t page_bytes(int dim, int bits, int num_kv_heads) {
    return is_packed(bits) ? head_scales(dim, bits, num_kv_heads, num_kv_heads) : head_codes(dim, bits, num_kv_heads);
}

static_assert(page_bytes(128, 16, 1) == 65536 && page_bytes(128, 4, 1) == 18432, "bits + 1/2 a value");
static_assert(group_bytes(6) == 24 && plane_offset(6, 4) == 0 && plane_offset(6, 2) == 16, "6 = 4 + 2");
static_assert(plane_offset(7, 1) == 24 && plane_offset(5, 1) == 16 && plane_low_bit(7, 1) == 6, "7 = 4 + 2 + 1");
static_assert(feature_of_slot(1) == 8 && feature_of_slot(4) == 1 && feature_of_slot(31) == 31, "quads are 8 apart");

}  // namespace kv
}  // namespace exl
