// CUDA's vector types and index types, for compilers that have none.
#pragma once

#include <cstdint>

struct dim3 {
    uint32_t x, y, z;
    constexpr dim3(uint32_t x = 1, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z) {}
};

// Declares type##2, type##3, type##4 with CUDA's alignments and their make_ functions.
#define EXL_VECTOR_TYPES(type, element)                                                                  \
    struct alignas(2 * sizeof(element)) type##2 { element x, y; };                                       \
    struct type##3 { element x, y, z; };                                                                 \
    struct alignas(4 * sizeof(element) > 16 ? 16 : 4 * sizeof(element)) type##4 { element x, y, z, w; }; \
    inline type##2 make_##type##2(element x, element y) { return {x, y}; }                               \
    inline type##3 make_##type##3(element x, element y, element z) { return {x, y, z}; }                 \
    inline type##4 make_##type##4(element x, element y, element z, element w) { return {x, y, z, w}; }

EXL_VECTOR_TYPES(char, int8_t)
EXL_VECTOR_TYPES(uchar, uint8_t)
EXL_VECTOR_TYPES(short, int16_t)
EXL_VECTOR_TYPES(ushort, uint16_t)
EXL_VECTOR_TYPES(int, int32_t)
EXL_VECTOR_TYPES(uint, uint32_t)
EXL_VECTOR_TYPES(float, float)
EXL_VECTOR_TYPES(double, double)
EXL_VECTOR_TYPES(longlong, int64_t)
EXL_VECTOR_TYPES(ulonglong, uint64_t)
#undef EXL_VECTOR_TYPES
