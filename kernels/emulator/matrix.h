// Matrix instructions on the CPU: exl/matrix.h says what they compute. Sums run over k in ascending order.
#pragma once

#include <cstring>

#include "emulator/device.h"

namespace exl::emulator {

// A lane's operands, and in place of `c` its result.
template <class T> struct Operands {
    uint32_t a[4], b[2];
    T c[4];
};
static_assert(sizeof(Operands<float>) <= slot_bytes, "operands fit a deposit");

void multiply_f16(Deposits operands);
void multiply_bf16(Deposits operands);
void multiply_s8(Deposits operands);
void multiply_u8s8(Deposits operands);

template <class T> inline void matrix_multiply(const char* name, Finish multiply, T (&c)[4], const uint32_t (&a)[4],
                                               const uint32_t (&b)[2]) {
    Operands<T> mine;
    std::memcpy(mine.a, a, sizeof a);
    std::memcpy(mine.b, b, sizeof b);
    std::memcpy(mine.c, c, sizeof c);
    converge(name);
    const Deposits results = rendezvous(name, &mine, sizeof mine, false, multiply);
    std::memcpy(&mine, results[threadIdx.x % group_lanes], sizeof mine);
    std::memcpy(c, mine.c, sizeof c);
}

// The row of eight 16-bit values that lane `lane` named.
inline const uint16_t* matrix_row(const char* name, Deposits rows, int lane) {
    const uint16_t* row;
    std::memcpy(&row, rows[lane], sizeof row);
    if (reinterpret_cast<uintptr_t>(row) % 16)
        fail("%s: row of lane %d: %p is not a multiple of 16 bytes", name, lane, (const void*)row);
    return row;
}

template <int count>
inline void load_matrix(const char* name, uint32_t (&out)[count], const void* row, bool transposed) {
    const Deposits rows = rendezvous(name, &row, sizeof row, false);
    const int lane = static_cast<int>(threadIdx.x % group_lanes), major = lane / 4, minor = lane % 4;
    for (int i = 0; i < count; i++) {
        if (transposed) {
            const uint16_t low = matrix_row(name, rows, i * 8 + 2 * minor)[major];
            const uint16_t high = matrix_row(name, rows, i * 8 + 2 * minor + 1)[major];
            out[i] = static_cast<uint32_t>(high) << 16 | low;
        } else {
            out[i] = reinterpret_cast<const uint32_t*>(matrix_row(name, rows, i * 8 + major))[minor];
        }
    }
}

}  // namespace exl::emulator
