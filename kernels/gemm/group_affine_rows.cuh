// Single rows and whole matrices of GroupAffine weights as numbers.
#pragma once

#include "exl/math.h"
#include "gemm/embedding.h"
#include "gemm/group_affine_codes.cuh"

namespace exl {
namespace gemm {

// What lane 4 g + t has of one step: `lane` need not be the lane that runs.
template <int bits, int scheme> struct Part {
    static constexpr int products_per_group = layouts::group_columns(scheme) / 16;
    static constexpr int zero = Scales<bits, scheme>::has_offset ? 0 : 1 << (bits - 1);
    Codes<bits> codes;
    Scales<bits, scheme> scales;
    SuperScales super;

    EXL_DEVICE void load(const uint8_t* tile, int step, int lane) {
        constexpr int super_bytes = layouts::super_bytes(scheme), scale_bytes = layouts::scale_bytes(bits, scheme);
        const uint8_t* record =
            tile + static_cast<int64_t>(step / layouts::record_steps) * layouts::record_bytes(bits, scheme);
        const uint8_t* at = record + super_bytes + step % layouts::record_steps * layouts::step_bytes(bits, scheme);
        super = Scales<bits, scheme>::load_super(record, lane / 4);
        scales.load(at, lane / 4);
        codes.load(at + scale_bytes, lane);
    }

    // Columns 16 s + 4 t .. + 3 of row g (high = 0) or g + 8 (1); s and high are constants after unrolling.
    EXL_DEVICE float4 values(int s, int high) const {
        float scale[2], offset[2] = {};
        scales.get(s / products_per_group, super, scale, offset);
        const uint32_t left = codes.pair(4 * s + high, 0) >> high * Codes<bits>::lift;
        const uint32_t right = codes.pair(4 * s + 2 + high, 0) >> high * Codes<bits>::lift;
        const auto value = [&](uint32_t code) {
            const float centred = static_cast<float>(static_cast<int>(code & 0xff) - zero);
            return fused_multiply_add(scale[high], centred, offset[high]);
        };
        return make_float4(value(left), value(left >> 16), value(right), value(right >> 16));
    }
};

constexpr int row_threads = 128;

// A block for each token; a thread takes every 32nd step of its columns 4 t.
template <int bits, int scheme> EXL_KERNEL(row_threads)
embed_rows(const uint8_t* data, int64_t tile_stride, int rows, int cols, exl_embed_args args) {
    const int id = args.ids[blockIdx.x];
    const bool valid = id >= 0 && id < rows;
    const uint8_t* tile = data + (valid ? id / layouts::tile_rows : 0) * tile_stride;
    const int row = valid ? id % layouts::tile_rows : 0, t = static_cast<int>(threadIdx.x) % 4;
    const float factor = valid ? args.multiplier : bit_cast<float>(0x7fc00000u);  // NaN
    float* out = args.out + blockIdx.x * args.out_stride;
    Part<bits, scheme> part;
    for (int step = static_cast<int>(threadIdx.x) / 4; step * layouts::step_columns < cols; step += row_threads / 4) {
        part.load(tile, step, 4 * (row % 8) + t);
#pragma unroll
        for (int s = 0; s < 4; s++) {
            const int column = step * layouts::step_columns + 16 * s + 4 * t;
            if (column >= cols) continue;
            const float4 value = row < 8 ? part.values(s, 0) : part.values(s, 1);
            *reinterpret_cast<float4*>(out + column) =
                make_float4(factor * value.x, factor * value.y, factor * value.z, factor * value.w);
        }
    }
}

// A block takes one tile and 4 steps at a time.
template <int bits, int scheme> EXL_KERNEL(row_threads)
expand_tiles(const uint8_t* data, int64_t tile_stride, int rows, int cols, exl_expand_args args) {
    const int g = lane() / 4, t = lane() % 4;
    Part<bits, scheme> part;
    const int stride = row_threads / group_size * static_cast<int>(gridDim.y);
    for (int step = static_cast<int>(blockIdx.y) * (row_threads / group_size) + group();
         step * layouts::step_columns < cols; step += stride) {
        part.load(data + blockIdx.x * tile_stride, step, lane());
#pragma unroll
        for (int s = 0; s < 4; s++) {
#pragma unroll
            for (int high = 0; high < 2; high++) {
                const int column = step * layouts::step_columns + 16 * s + 4 * t;
                const int row = static_cast<int>(blockIdx.x) * layouts::tile_rows + g + 8 * high;
                if (column >= cols || row >= rows) continue;
                const float4 value = part.values(s, high);
                uint2 packed;
                packed.x = exl::bits(to_half2(value.x, value.y));
                packed.y = exl::bits(to_half2(value.z, value.w));
                *reinterpret_cast<uint2*>(static_cast<half*>(args.out) + row * args.out_stride + column) = packed;
            }
        }
    }
}

}  // namespace gemm
}  // namespace exl
