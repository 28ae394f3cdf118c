// Rows of a GGUF file -> tiles of layouts/group_affine.h, on the host.
#include <cstring>

#include "gemm/group_affine.h"
#include "layouts/gguf.h"

namespace exl {
namespace gemm {
namespace {

using namespace layouts;

void put_byte(uint8_t* scales, int row, int group, uint8_t value) { scales[row % 8 * 8 + 2 * group + row / 8] = value; }

// The scales of columns 64 step .. of a block of 256, or of two blocks of 32, d[0] and d[1].
void put_scales(uint8_t* scales, int bits, int scheme, int row, int step, const Decoded* d) {
    const int g = row % 8, high = row / 8;
    const auto put_half = [&](int index, uint16_t value) { std::memcpy(scales + 2 * index, &value, 2); };
    for (int group = 0; group < step_columns / group_columns(scheme); group++) {
        const int in_record = step * (step_columns / group_columns(scheme)) + group;
        if (scheme == exl_symmetric) {
            put_half(4 * g + 2 * group + high, d[group].d);
        } else if (scheme == exl_affine) {
            put_half(8 * g + 2 * group + high, d[group].d);
            put_half(8 * g + 4 + 2 * group + high, d[group].m);
        } else if (scheme == exl_super32) {
            put_field(scales, g, 2 * group + high, d->small_scale[in_record]);
            put_field(scales, g, 4 + 2 * group + high, d->small_min[in_record]);
        } else if (scheme == exl_super16) {
            put_byte(scales, row, group, d->small_scale[in_record]);
        } else if (bits == 3) {
            put_field(scales, g, 2 * group + high, static_cast<uint8_t>(d->small_scale[in_record] + 32) & 63);
        } else {
            put_byte(scales, row, group, static_cast<uint8_t>(d->small_scale[in_record] + 128));
        }
    }
}

void put_super(uint8_t* supers, int scheme, int row, const Decoded& d) {
    const int g = row % 8, high = row / 8;
    if (scheme == exl_super16_signed) {
        std::memcpy(supers + 4 * g + 2 * high, &d.d, 2);
    } else {
        std::memcpy(supers + 8 * g + 2 * high, &d.d, 2);
        std::memcpy(supers + 8 * g + 4 + 2 * high, &d.m, 2);
    }
}

// One row of the file into its tile, which is zero where the row goes.
template <class Block, int elements>
void pack_row(int bits, int scheme, int cols, const uint8_t* raw, int row, uint8_t* tile) {
    constexpr int step_blocks = elements < step_columns ? step_columns / elements : 1;
    const int super = super_bytes(scheme), bytes = step_bytes(bits, scheme);
    const int blocks = cols / elements, steps = (cols + step_columns - 1) / step_columns;
    Decoded decoded[step_blocks] = {};
    for (int step = 0; step < steps; step++) {
        const int in_record = step % record_steps;
        uint8_t* record = tile + step / record_steps * record_bytes(bits, scheme);
        uint8_t* at = record + super + in_record * bytes;
        const int first = step * step_columns / elements;
        for (int i = 0; i < step_blocks; i++) {
            Block block = {};
            if (first + i < blocks) std::memcpy(&block, raw + (first + i) * sizeof block, sizeof block);
            if (elements < step_columns || in_record == 0) decode(block, decoded[i]);
        }
        if (super && in_record == 0) put_super(record, scheme, row, decoded[0]);
        put_scales(at, bits, scheme, row, in_record, decoded);
        for (int column = 0; column < step_columns; column++) {
            const Decoded& from = elements < step_columns ? decoded[column / 32] : decoded[0];
            const int element = elements < step_columns ? column % 32 : in_record * step_columns + column;
            put_code(at + scale_bytes(bits, scheme), bits, row, column, from.codes[element]);
        }
    }
}

struct Type {
    const char* name;
    int elements, bytes, bits;
    exl_scheme scheme;
    void (*pack)(int bits, int scheme, int cols, const uint8_t* raw, int row, uint8_t* tile);
};
const Type types[] = {
    {"Q4_0", 32, sizeof(Q4_0), 4, exl_symmetric, pack_row<Q4_0, 32>},
    {"Q4_1", 32, sizeof(Q4_1), 4, exl_affine, pack_row<Q4_1, 32>},
    {"Q5_0", 32, sizeof(Q5_0), 5, exl_symmetric, pack_row<Q5_0, 32>},
    {"Q5_1", 32, sizeof(Q5_1), 5, exl_affine, pack_row<Q5_1, 32>},
    {"Q8_0", 32, sizeof(Q8_0), 8, exl_symmetric, pack_row<Q8_0, 32>},
    {"Q2_K", 256, sizeof(Q2_K), 2, exl_super16, pack_row<Q2_K, 256>},
    {"Q3_K", 256, sizeof(Q3_K), 3, exl_super16_signed, pack_row<Q3_K, 256>},
    {"Q4_K", 256, sizeof(Q4_K), 4, exl_super32, pack_row<Q4_K, 256>},
    {"Q5_K", 256, sizeof(Q5_K), 5, exl_super32, pack_row<Q5_K, 256>},
    {"Q6_K", 256, sizeof(Q6_K), 6, exl_super16_signed, pack_row<Q6_K, 256>},
};

exl_status find_type(const char* name, int cols, const Type** found) {
    EXL_REQUIRE(name, exl_bad_argument, "type", "found a null pointer");
    *found = nullptr;
    for (const Type& type : types)
        if (std::strcmp(type.name, name) == 0) *found = &type;
    EXL_REQUIRE(*found, exl_bad_dtype, "type", "found %s, expected a GGUF type from Q4_0 to Q6_K", name);
    EXL_REQUIRE(cols > 0 && cols % (*found)->elements == 0, exl_bad_shape, "cols",
                "found %d, expected a multiple of %d", cols, (*found)->elements);
    return exl_ok;
}

}  // namespace
}  // namespace gemm
}  // namespace exl

EXL_API exl_status exl_group_affine_describe(const char* type, int32_t rows, int32_t cols, exl_group_affine* weight,
                                             int64_t* tile_bytes, int64_t* row_bytes) {
    EXL_REQUIRE(weight && tile_bytes && row_bytes, exl_bad_argument, "weight", "found a null pointer");
    EXL_REQUIRE(rows > 0, exl_bad_shape, "rows", "found %d, expected at least 1", rows);
    const exl::gemm::Type* found;
    EXL_TRY(exl::gemm::find_type(type, cols, &found));
    *weight = {nullptr, rows, cols, found->bits, found->scheme};
    *tile_bytes = exl::layouts::tile_bytes(found->bits, found->scheme, cols);
    *row_bytes = static_cast<int64_t>(cols / found->elements) * found->bytes;
    return exl_ok;
}

EXL_API exl_status exl_group_affine_pack(const char* type, int32_t cols, const void* rows, int32_t count, void* tiles) {
    EXL_REQUIRE(rows, exl_bad_argument, "rows", "found a null pointer");
    EXL_REQUIRE(tiles, exl_bad_argument, "tiles", "found a null pointer");
    EXL_REQUIRE(count > 0, exl_bad_shape, "count", "found %d, expected at least 1", count);
    const exl::gemm::Type* found;
    EXL_TRY(exl::gemm::find_type(type, cols, &found));
    const int64_t tile = exl::layouts::tile_bytes(found->bits, found->scheme, cols);
    const int64_t row_bytes = static_cast<int64_t>(cols / found->elements) * found->bytes;
    uint8_t* to = static_cast<uint8_t*>(tiles);
    std::memset(to, 0, static_cast<size_t>((count + 15) / 16 * tile));
    for (int32_t i = 0; i < count; i++)
        found->pack(found->bits, found->scheme, cols, static_cast<const uint8_t*>(rows) + i * row_bytes, i % 16,
                    to + i / 16 * tile);
    return exl_ok;
}
