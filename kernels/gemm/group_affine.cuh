// GroupAffine as a Format of products.cuh; the picture is in layouts/group_affine.h.
#pragma once

#include "gemm/group_affine_codes.cuh"
#include "gemm/products.cuh"

namespace exl {
namespace gemm {

template <int bits, int scheme_number> struct GroupAffine {
    static constexpr int scheme = scheme_number;
    using S = Scales<bits, scheme>;
    using Carry = SuperScales;
    static constexpr int lift = Codes<bits>::lift;
    static constexpr int super = layouts::super_bytes(scheme), step = layouts::step_bytes(bits, scheme);
    static constexpr int scale = layouts::scale_bytes(bits, scheme), record = layouts::record_bytes(bits, scheme);
    static constexpr int stage_bytes = super + step;  // super scales come with the first step of a record
    static constexpr int products = layouts::group_columns(scheme) / 16;

    EXL_DEVICE static constexpr float lowered(int i) { return i < 2 ? 1.0f : 1.0f / static_cast<float>(1 << lift); }
    // What sums[..][..][i] are to be multiplied by.
    EXL_DEVICE static constexpr float unit(int i) { return code_unit * lowered(i); }

    // Copies of 16 bytes are dealt to the lanes; what a lane copies stays at the same place of every step.
    struct Source {
        static constexpr int pieces = step / 16, all = tiles_per_group * pieces;
        static constexpr int rounds = (all + group_size - 1) / group_size;
        const uint8_t* from[rounds];
        int to[rounds];
        const uint8_t* super_from;

        EXL_DEVICE Source(const Problem& problem, const Work& work) {
            const uint8_t* tile[tiles_per_group];
#pragma unroll
            for (int r = 0; r < tiles_per_group; r++) {
                const Projection& projection = problem.projections[work.projections[r]];
                const int index = work.tiles[r] < projection.tiles ? work.tiles[r] : projection.tiles - 1;
                tile[r] = projection.data + index * projection.tile_stride +
                          static_cast<int64_t>(work.first_step / record_steps) * record;
            }
#pragma unroll
            for (int i = 0; i < rounds; i++) {
                const int piece = i * group_size + lane(), r = piece / pieces, at = piece % pieces * 16;
                from[i] = (r == 0 ? tile[0] : tile[1]) + super + at;
                to[i] = r * stage_bytes + super + at;
            }
            super_from = lane() * 16 < super ? tile[0] + lane() * 16 : tile[1] + (lane() * 16 - super);
        }

        // The step `ahead` of the current record's first into a slot of the ring.
        EXL_DEVICE void issue(int ahead, uint8_t* slot) const {
            const int offset = ahead / record_steps * record + ahead % record_steps * step;
#pragma unroll
            for (int i = 0; i < rounds; i++)
                if ((i + 1) * group_size <= all || i * group_size + lane() < all)
                    copy_async(slot + to[i], from[i] + offset);
            if (super > 0 && ahead % record_steps == 0 && lane() * 16 < tiles_per_group * super) {
                const int r = lane() * 16 / (super > 0 ? super : 1);
                copy_async(slot + r * stage_bytes + lane() * 16 - r * super,
                           super_from + ahead / record_steps * record);
            }
        }
        EXL_DEVICE void advance() {
#pragma unroll
            for (int i = 0; i < rounds; i++) from[i] += record;
            super_from += record;
        }
    };

    // sums += a step of both tiles times the tokens. x: this lane's row of the first 8 tokens, at the step's first column.
    template <int x_row_bytes, int token_tiles>
    EXL_DEVICE static void multiply(Sums<token_tiles>& sums, Carry (&carry)[tiles_per_group], bool first_of_record,
                                    const uint8_t* stages, const uint8_t* x) {
        constexpr int zero = S::has_offset ? 0 : 1 << (bits - 1);
        // Without an offset the group's sum starts at minus zero point times sum of activations; with one, that sum in
        // the unit of codes is needed by itself.
        constexpr uint32_t even = constant_pair(S::has_offset ? 1 : -(zero + code_bias));
        constexpr uint32_t odd = constant_pair(S::has_offset ? 1 << lift : -((zero << lift) + code_bias));
        const uint32_t constants[4] = {even, odd, even, odd};
        const uint32_t magic = code_magic;
        Codes<bits> codes[tiles_per_group];
        S scales[tiles_per_group];
#pragma unroll
        for (int r = 0; r < tiles_per_group; r++) {
            const uint8_t* stage = stages + r * stage_bytes;
            if (super > 0 && first_of_record) carry[r] = S::load_super(stage, lane() / 4);
            scales[r].load(stage + super, lane() / 4);
            codes[r].load(stage + super + scale, lane());
        }
#pragma unroll
        for (int group = 0; group < 4 / products; group++) {
            uint32_t a[tiles_per_group][products][4];
            float scale_of[tiles_per_group][2], offset_of[tiles_per_group][2];
#pragma unroll
            for (int r = 0; r < tiles_per_group; r++) {
                scales[r].get(group, carry[r], scale_of[r], offset_of[r]);
#pragma unroll
                for (int p = 0; p < products; p++)
#pragma unroll
                    for (int i = 0; i < 4; i++) a[r][p][i] = codes[r].pair(4 * (group * products + p) + i, magic);
            }
#pragma unroll
            for (int n = 0; n < token_tiles; n++) {
                uint32_t b[products][2];
                float base[4] = {};
#pragma unroll
                for (int p = 0; p < products; p++) {
                    const uint8_t* from = x + n * 8 * x_row_bytes + (group * products + p) * 32 + lane() % 4 * 8;
                    const uint2 four = *reinterpret_cast<const uint2*>(from);
                    b[p][0] = four.x, b[p][1] = four.y;
                    mma_f16(base, constants, b[p]);
                }
#pragma unroll
                for (int r = 0; r < tiles_per_group; r++) {
                    float c[4];
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        c[i] = !S::has_offset ? base[i] : code_bias ? -code_bias * lowered(i) * base[i] : 0.0f;
#pragma unroll
                    for (int p = 0; p < products; p++) mma_f16(c, a[r][p], b[p]);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float& sum = sums.values[r][n][i];
                        sum = fused_multiply_add(scale_of[r][i / 2], c[i], sum);
                        if constexpr (S::has_offset) sum = fused_multiply_add(offset_of[r][i / 2], base[i], sum);
                    }
                }
            }
        }
    }
};

template <class Format, int token_tiles> EXL_KERNEL(threads) multiply(const Problem problem) {
    EXL_DYNAMIC_SHARED(uint8_t, memory);
    multiply_block<Format, token_tiles>(problem, memory);
}

}  // namespace gemm
}  // namespace exl
