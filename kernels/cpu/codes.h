// Writing and reading single codes in the layout of unpack.h; used when packing weights and storing keys.
#pragma once

#include <cstdint>
#include <cstring>

namespace exl::cpu {

// Calls f(width, low_bit, byte offset of the plane) for each plane of a code of `bits` bits.
template <typename F> static inline void each_plane(int bits, F f) {
    int low = 0, offset = 0;
    for (int width : {8, 4, 2, 1}) {
        if (bits - low >= width) {
            f(width, low, offset);
            low += width;
            offset += 64 * width;
        }
    }
}

// Row r < 16 of a 16 x 32 block: writes its 32 codes, four columns at a time.
static inline void put_row(uint8_t* block, int bits, int r, const uint8_t* codes) {
    uint32_t columns[8];
    std::memcpy(columns, codes, 32);
    each_plane(bits, [&](int width, int low, int offset) {
        const int per_unit = 8 / width;
        const uint32_t mask = ((1u << width) - 1) * 0x01010101u;
        for (int unit = 0; unit < width; ++unit) {
            uint32_t word = 0;
            for (int i = 0; i < per_unit; ++i) word |= ((columns[unit * per_unit + i] >> low) & mask) << (width * i);
            std::memcpy(block + offset + 64 * unit + 4 * r, &word, 4);
        }
    });
}

static inline void get_row(const uint8_t* block, int bits, int r, uint8_t* codes) {
    for (int c = 0; c < 32; ++c) codes[c] = 0;
    each_plane(bits, [&](int width, int low, int offset) {
        const int per_unit = 8 / width, mask = (1 << width) - 1;
        for (int c = 0; c < 32; ++c) {
            const int unit = (c / 4) / per_unit, i = (c / 4) % per_unit;
            const int byte = block[offset + 64 * unit + 4 * r + c % 4];
            codes[c] = uint8_t(codes[c] | (((byte >> (width * i)) & mask) << low));
        }
    });
}

}  // namespace exl::cpu
