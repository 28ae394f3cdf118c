// GroupAffine as a Format of products.cuh; the picture is in layouts/group_affine.h.
#pragma once

#include "gemm/group_affine_codes.cuh"
#include "gemm/products.cuh"

namespace exl {
namespace gemm {

template <int bits, int scheme_number> struct GroupAffine {
    static constexpr int scheme = scheme_number;
    static constexpr bool rotated = false;
    static constexpr int compiled_tiles = Call::all_sizes;
    static constexpr bool short_steps = true;
    using S = Scales<bits, scheme>;
    static constexpr int lift = Codes<bits>::lift;
    static constexpr int super = layouts::super_bytes(scheme), step = layouts::step_bytes(bits, scheme);
    static constexpr int scale = layouts::scale_bytes(bits, scheme), record = layouts::record_bytes(bits, scheme);
    static constexpr int stage_bytes = super + step;  // super scales come with the first step of a record
    static constexpr int products = layouts::group_columns(scheme) / 16;

    EXL_DEVICE static constexpr float lowered(int i) { return i < 2 ? 1.0f : 1.0f / static_cast<float>(1 << lift); }
    // What sums[..][..][i] are to be multiplied by.
    EXL_DEVICE static constexpr float unit(int i) { return code_unit * lowered(i); }

    // Codes, scales and super scales of all tiles are copied apart, 16 bytes a lane and round. A lane has the same place in
    // every step. Where steps are short, lanes with nothing to copy in a round fill a spare place with zeros: a predicate is
    // cheaper than a branch.
    EXL_HOST_DEVICE static constexpr int spare_bytes(int tiles) { return tiles > 2 ? group_size * 16 : 0; }
    template <int tiles> struct Source {
        // `pieces` of 16 bytes of each tile's step or record.
        template <int pieces> struct Copies {
            static constexpr int all = tiles * pieces, rounds = (all + group_size - 1) / group_size;
            // Rounds over one tile share an address.
            static constexpr int shared = pieces % group_size == 0 && pieces > 0 ? pieces / group_size : 1;
            const uint8_t* from[(rounds + shared - 1) / shared + 1];
            int to[rounds + 1];
            int steps, steps_of_last;  // that exist, for all rounds but the last and for that

            // offset: of the first piece, in the memory of a step that the number `start` leads to, and in its stage.
            EXL_DEVICE void place(const Problem& problem, const Work<tiles>& work, int64_t start, int offset) {
#pragma unroll
                for (int i = 0; i < rounds; i++) {
                    const int piece = i * group_size + lane(), r = piece / (pieces > 0 ? pieces : 1);
                    const int at = offset + (piece - r * pieces) * 16;
                    if (i % shared == 0) from[i / shared] = work.address(problem, r < tiles ? r : 0, start + at);
                    to[i] = r < tiles ? r * stage_bytes + at : tiles * stage_bytes + lane() * 16;
                }
                steps = work.steps;
                steps_of_last = (rounds - 1) * group_size + lane() < all ? work.steps : 0;
            }
            EXL_DEVICE void issue(uint8_t* stage, int ahead, int number) const {
#pragma unroll
                for (int i = 0; i < rounds; i++) {
                    const bool full = i < rounds - 1 || all % group_size == 0;
                    if (full || spare_bytes(tiles) || steps_of_last)
                        copy_async(stage + to[i], from[i / shared] + ahead + i % shared * group_size * 16,
                                   number < (full ? steps : steps_of_last));
                }
            }
            EXL_DEVICE void advance() {
#pragma unroll
                for (int i = 0; i < rounds; i += shared) from[i / shared] += record;
            }
        };
        Copies<layouts::code_bytes(bits) / 16> codes;
        Copies<scale / 16> scales;
        Copies<super / 16> supers;

        EXL_DEVICE Source(const Problem& problem, const Work<tiles>& work) {
            const int64_t start = static_cast<int64_t>(work.first_step / record_steps) * record;
            codes.place(problem, work, start, super + scale);
            scales.place(problem, work, start, super);
            supers.place(problem, work, start, 0);
        }
        EXL_DEVICE void issue(int ahead, uint8_t* stage, int number) const {
            const int offset = ahead / record_steps * record + ahead % record_steps * step;
            codes.issue(stage, offset, number);
            scales.issue(stage, offset, number);
            if (ahead % record_steps == 0) supers.issue(stage, ahead / record_steps * record, number);
        }
        EXL_DEVICE void advance() {
            codes.advance();
            scales.advance();
            supers.advance();
        }
    };

    // Super scales of the current record, and the matrix whose product with x is the group's sum of activations: without
    // an offset times minus the zero point, where the sum of code * x starts; with one, in the unit of codes.
    template <int tiles> struct State {
        SuperScales super_scales[tiles];
        uint32_t constants[4];

        EXL_DEVICE State(const Problem&, uint8_t* shared) {
            constexpr int zero = S::has_offset ? 0 : 1 << (bits - 1);
            constexpr uint32_t even = constant_pair(S::has_offset ? 1 : -(zero + code_bias));
            constexpr uint32_t odd = constant_pair(S::has_offset ? 1 << lift : -((zero << lift) + code_bias));
            // Through memory, for what a compiler knows it puts into registers anew each time.
            uint4* mine = reinterpret_cast<uint4*>(shared) + threadIdx.x;
            *mine = make_uint4(even, odd, even, odd);
            sync_warp();
            const uint4 back = *mine;
            constants[0] = back.x, constants[1] = back.y, constants[2] = back.z, constants[3] = back.w;
        }
    };

    // sums += a step of all tiles times the tokens. x: this lane's row of the first 8 tokens, at the step's first column.
    template <int x_row_bytes, int token_tiles, int tiles>
    EXL_DEVICE static void multiply(Sums<token_tiles>& sums, State<tiles>& state, const Source<tiles>&, int i_of_record,
                                    const uint8_t* stages, const uint8_t* x) {
        const uint32_t magic = code_magic;
        Codes<bits> codes[tiles];
        S scales[tiles];
#pragma unroll
        for (int r = 0; r < tiles; r++) {
            const uint8_t* stage = stages + r * stage_bytes;
            if (super > 0 && i_of_record == 0) state.super_scales[r] = S::load_super(stage, lane() / 4);
            scales[r].load(stage + super, lane() / 4);
            codes[r].load(stage + super + scale, lane());
        }
#pragma unroll
        for (int group = 0; group < 4 / products; group++) {
            uint32_t a[tiles][products][4];
            float scale_of[tiles][2], offset_of[tiles][2];
#pragma unroll
            for (int r = 0; r < tiles; r++) {
                scales[r].get(group, state.super_scales[r], scale_of[r], offset_of[r]);
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
                    mma_f16(base, state.constants, b[p]);
                }
#pragma unroll
                for (int r = 0; r < tiles; r++) {
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

}  // namespace gemm
}  // namespace exl
