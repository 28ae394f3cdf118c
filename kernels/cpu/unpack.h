// Codes of 2 to 8 bits: 16 rows x 32 columns in 64 * bits bytes.
//
// A code is cut into planes of 8, 4, 2 or 1 bits, low bits first: 2 = [2], 3 = [2, 1], 4 = [4], 5 = [4, 1], 6 = [4, 2],
// 7 = [4, 2, 1], 8 = [8]. A plane of w bits is w units of 64 bytes; byte (row r, j), r < 16, j < 4, at offset 4 r + j of
// unit u holds 8 / w fields, and field i (bits w i .. w i + w - 1) belongs to column 4 (u * 8 / w + i) + j:
//
//   w = 4   unit 0  byte (r, j) = [ column 4 + j | column j ]      unit 1  [ 12 + j | 8 + j ]  ...
//
// So one load, shift and mask yields 16 rows x 4 adjacent columns: the operand of a 4-byte dot product, and a row of an
// AMX B tile. Weights (row = output feature) and quantized keys (row = token) share it.
#pragma once

#include "simd.h"

namespace EXL_ISA {

template <int width, int shift_to>
__attribute__((always_inline)) inline i32v plane_field(const uint8_t* plane, int column4) {
    constexpr int per_unit = 8 / width;
    const i32v unit = i_load(plane + 64 * (column4 / per_unit));
    const int down = width * (column4 % per_unit);
    i32v field = unit;
    // Bits shifted in from the neighbouring byte are masked away.
    switch (down - shift_to) {
        case -7: field = i_shl<7>(unit); break;
        case -6: field = i_shl<6>(unit); break;
        case -5: field = i_shl<5>(unit); break;
        case -4: field = i_shl<4>(unit); break;
        case -3: field = i_shl<3>(unit); break;
        case -2: field = i_shl<2>(unit); break;
        case -1: field = i_shl<1>(unit); break;
        case 0: break;
        case 1: field = i_shr<1>(unit); break;
        case 2: field = i_shr<2>(unit); break;
        case 3: field = i_shr<3>(unit); break;
        case 4: field = i_shr<4>(unit); break;
        case 5: field = i_shr<5>(unit); break;
        case 6: field = i_shr<6>(unit); break;
        case 7: field = i_shr<7>(unit); break;
    }
    if constexpr (width == 8) return field;
    return i_and(field, i8_set(int8_t(((1 << width) - 1) << shift_to)));
}

// Columns 4 c .. 4 c + 3 of 16 rows as unsigned bytes; c must be a constant after unrolling.
template <int bits> __attribute__((always_inline)) inline i32v unpack(const uint8_t* p, int c) {
    if constexpr (bits == 2 || bits == 4 || bits == 8) return plane_field<bits, 0>(p, c);
    if constexpr (bits == 3) return i_or(plane_field<2, 0>(p, c), plane_field<1, 2>(p + 128, c));
    if constexpr (bits == 5) return i_or(plane_field<4, 0>(p, c), plane_field<1, 4>(p + 256, c));
    if constexpr (bits == 6) return i_or(plane_field<4, 0>(p, c), plane_field<2, 4>(p + 256, c));
    if constexpr (bits == 7)
        return i_or(i_or(plane_field<4, 0>(p, c), plane_field<2, 4>(p + 256, c)), plane_field<1, 6>(p + 384, c));
}

}  // namespace EXL_ISA
