#pragma once

#include "exl/hadamard.h"
#include "exl/half.h"
#include "exl/math.h"
#include "exl/warp.h"
#include "norm/norm.h"

namespace exl {
namespace norm {

constexpr int threads = 256;

struct alignas(8) Half4 {
    half2 low, high;
};

// The sum over the block, in every thread: 32 lanes, then the groups in order.
EXL_DEVICE float block_sum(float value) {
    EXL_SHARED(float, sums, [threads / group_size]);
    value = warp_sum(value);
    if (lane() == 0) sums[group()] = value;
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < threads / group_size; i++) sum += sums[i];
    return sum;
}

EXL_DEVICE float4 add(float4 x, Half4 delta) {
    const float2 low = to_float2(delta.low), high = to_float2(delta.high);
    return make_float4(x.x + low.x, x.y + low.y, x.z + high.x, x.w + high.y);
}

EXL_DEVICE float add_squares(float4 x, float sum) {
    sum = fused_multiply_add(x.x, x.x, sum);
    sum = fused_multiply_add(x.y, x.y, sum);
    sum = fused_multiply_add(x.z, x.z, sum);
    return fused_multiply_add(x.w, x.w, sum);
}

// Quad `column` of a normalized row.
EXL_DEVICE float4 scaled(const exl_norm_args& args, float4 v, float inverse, int column) {
    const float4 w = reinterpret_cast<const float4*>(args.weight)[column];
    return make_float4(v.x * inverse * w.x, v.y * inverse * w.y, v.z * inverse * w.z, v.w * inverse * w.w);
}

EXL_DEVICE Half4 packed(float4 v) { return {to_half2(v.x, v.y), to_half2(v.z, v.w)}; }

// A group of lanes has the 128 columns of a block of the Hadamard matrix; behind the row's end they are zeros.
EXL_DEVICE Half4 rotated(float4 v, Half4 suh) {
    const float2 low = to_float2(suh.low), high = to_float2(suh.high);
    float values[4] = {v.x * low.x, v.y * low.y, v.z * high.x, v.w * high.y};
    rotate128(values);
    return packed(make_float4(values[0], values[1], values[2], values[3]));
}

// Each thread holds `quads` x 4 columns: columns 4 (threadIdx.x + i threads) .. + 3.
template <int quads, bool rotates> EXL_KERNEL(threads, 1) normalize(exl_norm_args args) {
    const int64_t row = blockIdx.x, from = args.row_index ? args.row_index[row] : row;
    float4* x = reinterpret_cast<float4*>(args.x + from * args.x_stride);
    const Half4* delta = reinterpret_cast<const Half4*>(static_cast<const half*>(args.delta) + row * args.delta_stride);
    const int count = args.width / 4;
    float4 values[quads];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < quads; i++) {
        const int column = static_cast<int>(threadIdx.x) + i * threads;
        if (column >= count) continue;
        values[i] = x[column];
        if (args.delta) x[column] = values[i] = add(values[i], delta[column]);
        sum = add_squares(values[i], sum);
    }
    const float inverse = 1.0f / sqrtf(block_sum(sum) / static_cast<float>(args.width) + args.eps);
    half* out = static_cast<half*>(args.out) + row * args.out_stride;
#pragma unroll
    for (int i = 0; i < quads; i++) {
        const int column = static_cast<int>(threadIdx.x) + i * threads;
        if constexpr (rotates) {
            constexpr int block = hadamard_size / 4;  // quads of a group of lanes
            if (column / block * block >= count) continue;
            const bool inside = column < count;
            const float4 v = inside ? scaled(args, values[i], inverse, column) : make_float4(0, 0, 0, 0);
#pragma unroll
            for (int r = 0; r < exl_max_rotations; r++)  // constant indices: arguments stay where they are
                if (r < args.num_rotations)
                    reinterpret_cast<Half4*>(out + r * args.out_step)[column] =
                        rotated(v, static_cast<const Half4*>(args.suh[r])[column]);
        } else {
            if (column >= count) continue;
            reinterpret_cast<Half4*>(out)[column] = packed(scaled(args, values[i], inverse, column));
        }
    }
}

}  // namespace norm
}  // namespace exl
