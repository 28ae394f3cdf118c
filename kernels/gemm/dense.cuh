// Dense as a Format of products.cuh. Lanes read their parts of the fragments straight from memory, 4 columns of a row at
// a time: 8 rows x 32 bytes a load for 16-bit types, whole sectors, and a step's loads are all under way together.
#pragma once

#include "gemm/dense.h"
#include "gemm/products.cuh"

namespace exl {
namespace gemm {

// A pair of numbers as bf16 parts that add up to it exactly: two for halves, three for floats.
template <int parts> struct Split {
    uint32_t part[parts];

    EXL_DEVICE explicit Split(float2 value) {
#pragma unroll
        for (int i = 0; i < parts; i++) {
            const bfloat162 rounded = to_bfloat162(value.x, value.y);
            part[i] = bit_cast<uint32_t>(rounded);
            const float2 taken = to_float2(rounded);
            value.x -= taken.x, value.y -= taken.y;
        }
    }
};

template <class T> struct IsHalf {
    static constexpr bool value = false;
};
template <> struct IsHalf<half> {
    static constexpr bool value = true;
};

template <class T> struct Dense {
    static constexpr bool rotated = false;
    static constexpr int compiled_tiles = Call::all_sizes;
    static constexpr bool short_steps = false;
    static constexpr int stage_bytes = 0;
    EXL_HOST_DEVICE static constexpr int spare_bytes(int) { return 0; }
    EXL_DEVICE static constexpr float unit(int) { return 1.0f; }

    struct alignas(4 * sizeof(T)) Four {
        T values[4];
    };

    // Where rows g and g + 8 of each tile are, at the record's first column of this lane. Behind the last row it stands
    // again: what comes of it is not written.
    template <int tiles> struct Source {
        const T* rows[tiles][2];
        int columns;  // that exist from there on

        EXL_DEVICE Source(const Problem& problem, const Work<tiles>& work) {
            const int first = work.first_step * step_columns + lane() % 4 * 4;
#pragma unroll
            for (int r = 0; r < tiles; r++) {
                const Projection& of = problem.projections[work.projection(r)];
#pragma unroll
                for (int high = 0; high < 2; high++) {
                    const int row = work.tile(r) * tile_rows + lane() / 4 + 8 * high;
                    const int64_t at = (row < of.rows ? row : of.rows - 1) * (of.tile_stride / tile_rows);
                    rows[r][high] = reinterpret_cast<const T*>(of.data + at) + first;
                }
            }
            columns = problem.cols - first;
        }
        EXL_DEVICE Four read(int r, int high, int column) const {
            return column < columns ? *reinterpret_cast<const Four*>(rows[r][high] + column) : Four{};
        }
        EXL_DEVICE void issue(int, uint8_t*, int) const {}
        EXL_DEVICE void advance() {
#pragma unroll
            for (int r = 0; r < tiles; r++) {
                rows[r][0] += record_steps * step_columns;
                rows[r][1] += record_steps * step_columns;
            }
            columns -= record_steps * step_columns;
        }
    };

    template <int tiles> struct State {
        EXL_DEVICE State(const Problem&, uint8_t*) {}
    };

    template <int x_row_bytes, int token_tiles, int tiles>
    EXL_DEVICE static void multiply(Sums<token_tiles>& sums, State<tiles>&, const Source<tiles>& source, int i,
                                    const uint8_t*, const uint8_t* x) {
        // Products whose weights are under way together: as many as there are registers for.
        constexpr int together = token_tiles > 2 ? 1 : sizeof(T) == 2 ? 4 : 2 / token_tiles;
#pragma unroll(sizeof(T) == 2 ? 4 : 1)
        for (int first = 0; first < step_columns / 16; first += together) {
            Four lines[together][tiles][2];
#pragma unroll
            for (int s = 0; s < together; s++)
#pragma unroll
                for (int r = 0; r < tiles; r++)
#pragma unroll
                    for (int high = 0; high < 2; high++)
                        lines[s][r][high] = source.read(r, high, i * step_columns + 16 * (first + s));
#pragma unroll
            for (int s = 0; s < together; s++)
#pragma unroll
                for (int n = 0; n < token_tiles; n++) {
                    const uint8_t* from = x + n * 8 * x_row_bytes + (first + s) * 32 + lane() % 4 * 8;
                    const uint2 b = *reinterpret_cast<const uint2*>(from);
#pragma unroll
                    for (int r = 0; r < tiles; r++) product(sums.values[r][n], lines[s][r], b);
                }
        }
    }

    // rows: columns 4 t .. + 3 of row g and of row g + 8.
    EXL_DEVICE static void product(float (&c)[4], const Four (&rows)[2], uint2 b) {
        T a[4][2];
#pragma unroll
        for (int i = 0; i < 8; i++) a[i / 4 * 2 + i / 2 % 2][i % 2] = rows[i / 2 % 2].values[i / 4 * 2 + i % 2];
        if constexpr (sizeof(T) == 2) {
            uint32_t words[4];
#pragma unroll
            for (int i = 0; i < 4; i++) words[i] = bit_cast<uint32_t>(Pair{a[i][0], a[i][1]});
            if constexpr (is_half) {
                mma_f16(c, words, {b.x, b.y});
            } else {
                const Split<2> left(to_float2(half2_from_bits(b.x))), right(to_float2(half2_from_bits(b.y)));
#pragma unroll
                for (int j = 1; j >= 0; j--) mma_bf16(c, words, {left.part[j], right.part[j]});  // the small part first
            }
        } else {
            const Split<2> left(to_float2(half2_from_bits(b.x))), right(to_float2(half2_from_bits(b.y)));
            uint32_t words[3][4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const Split<3> split(make_float2(to_float(a[i][0]), to_float(a[i][1])));
#pragma unroll
                for (int part = 0; part < 3; part++) words[part][i] = split.part[part];
            }
#pragma unroll
            for (int part = 2; part >= 0; part--)
#pragma unroll
                for (int j = 1; j >= 0; j--) mma_bf16(c, words[part], {left.part[j], right.part[j]});
        }
    }

 private:
    struct Pair {
        T x, y;
    };
    static constexpr bool is_half = IsHalf<T>::value;
};

}  // namespace gemm
}  // namespace exl
