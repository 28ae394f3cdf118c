#pragma once

#include "cache/rotation.cuh"
#include "cache/rows.cuh"
#include "exl/half.h"
#include "exl/math.h"
#include "exl/ticket.h"
#include "exl/warp.h"
#include "layouts/kv_page.h"
#include "rope/angle.cuh"
#include "rope/rope.h"

namespace exl {
namespace rope {

constexpr int groups_per_block = 4, threads = groups_per_block * group_size;
constexpr int max_dim = 256;

EXL_KERNEL(threads) fill_table(exl_rope_table_args args) {
    const int half_dim = args.rotary_dim / 2, row = static_cast<int>(blockIdx.x);
    const int i = static_cast<int>(blockIdx.y * threads + threadIdx.x);
    const int position = args.positions[row];
    if (position < 0 || i >= half_dim) return;
    const double2 value = cosine_and_sine(static_cast<float>(position) * args.inv_freq[i]);
    float* out = args.table + static_cast<int64_t>(row) * args.rotary_dim;
    out[i] = static_cast<float>(value.x) * args.scale;
    out[half_dim + i] = static_cast<float>(value.y) * args.scale;
}

// One head of one row: lane l of a group holds features l, l + 32, ...; features beyond head_dim are 0.
template <int per_lane> struct Head {
    float x[per_lane];

    EXL_DEVICE static int feature(int i) { return i * group_size + lane(); }

    EXL_DEVICE void load(const void* from, int64_t offset, int head_dim) {
#pragma unroll
        for (int i = 0; i < per_lane; i++)
            x[i] = feature(i) < head_dim ? to_float(static_cast<const half*>(from)[offset + feature(i)]) : 0.0f;
    }

    EXL_DEVICE void normalize(const float* weight, float eps, int head_dim) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < per_lane; i++) sum = fused_multiply_add(x[i], x[i], sum);
        const float inverse = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(head_dim) + eps);
#pragma unroll
        for (int i = 0; i < per_lane; i++)
            if (feature(i) < head_dim) x[i] = x[i] * inverse * weight[feature(i)];
    }

    // line: max_dim floats of shared memory that belong to this group.
    EXL_DEVICE void turn(const float* table, int rotary_dim, float* line) {
        const int distance = rotary_dim / 2;
#pragma unroll
        for (int i = 0; i < per_lane; i++) line[feature(i)] = x[i];
        sync_warp();
#pragma unroll
        for (int i = 0; i < per_lane; i++) {
            const int f = feature(i);
            if (f >= rotary_dim) continue;
            const bool first = f < distance;
            const float other = line[first ? f + distance : f - distance];
            const float cosine = table[first ? f : f - distance], sine = table[first ? f + distance : f];
            x[i] = fused_multiply_add(x[i], cosine, first ? -(other * sine) : other * sine);
        }
    }

    EXL_DEVICE void rotate() {
#pragma unroll
        for (int i = 0; i < per_lane; i++) x[i] = kv::rotate32(x[i]);
    }

    // As fp16; features from `dim` on are not written. False in every lane: a value does not fit.
    EXL_DEVICE bool store_half(half* out, int dim) const {
        constexpr uint32_t rounds_to_infinity = 0x477ff000;  // the bits of 65520
        bool fits = true;
#pragma unroll
        for (int i = 0; i < per_lane; i++) {
            if (feature(i) < dim) out[feature(i)] = to_half(x[i]);
            fits &= (bit_cast<uint32_t>(x[i]) & 0x7fffffff) < rounds_to_infinity;
        }
        return all(fits);
    }
};

// The smallest fp16 number that is not below the magnitude, 65504 if there is none.
EXL_DEVICE half half_at_least(float magnitude) {
    const half near = to_half(magnitude);
    return to_float(near) < magnitude ? half_from_bits(static_cast<uint16_t>(bits(near) + 1)) : near;
}

// One plane of the codes of a group; `field` is that of this lane's slot.
template <int width> EXL_DEVICE void store_plane(uint8_t* group_codes, int code_bits, uint32_t slot_code) {
    constexpr int per_word = 32 / width;
    const uint32_t field = slot_code >> kv::plane_low_bit(code_bits, width) & ((1u << width) - 1);
    uint32_t word = field << width * (lane() % per_word);
#pragma unroll
    for (int distance = 1; distance < per_word; distance *= 2) word |= shuffle_xor(word, distance);
    if (lane() % per_word == 0)
        reinterpret_cast<uint32_t*>(group_codes + kv::plane_offset(code_bits, width))[lane() / per_word] = word;
}

// A rotated group, one feature a lane, as codes and scale. False in every lane: the scale would exceed fp16.
EXL_DEVICE bool store_group(float x, int code_bits, uint8_t* group_codes, half* scale_out) {
    const float peak =
        bit_cast<float>(warp_max(bit_cast<uint32_t>(x) & 0x7fffffff));  // NaN above infinity above all else
    const bool fits = peak <= 65504.0f;
    const half scale = fits ? half_at_least(peak) : to_half(65504.0f);
    const float m = static_cast<float>(1 << (code_bits - 1)), top = 2 * m - 1, size = to_float(scale);
    const float inverse = 1.0f / (size > 1e-10f ? size : 1e-10f);
    const float q =
        floorf(fused_multiply_add(x * inverse, m, m));  // m is a power of 2: one rounding or two are the same
    const uint32_t code = static_cast<uint32_t>(q > 0.0f ? (q < top ? q : top) : 0.0f);  // 0 for NaN
    const uint32_t slot_code = shuffle(code, kv::feature_of_slot(lane()));
    if (code_bits == 8) store_plane<8>(group_codes, code_bits, slot_code);
    if (code_bits & 4) store_plane<4>(group_codes, code_bits, slot_code);
    if (code_bits & 2) store_plane<2>(group_codes, code_bits, slot_code);
    if (code_bits & 1) store_plane<1>(group_codes, code_bits, slot_code);
    if (lane() == 0) *scale_out = scale;
    return fits;
}

// A key or value into its page. False in every lane: it does not fit.
template <int per_lane> EXL_DEVICE bool store_head(Head<per_lane>& head, const exl_kv_cache& cache, uint8_t* page,
                                                   int code_bits, int dim, int kv_head, int token) {
    const int row = kv::row_bytes(dim, code_bits);
    uint8_t* codes = page + kv::head_codes(dim, code_bits, kv_head) + token * row;
    if (!kv::is_packed(code_bits)) return head.store_half(reinterpret_cast<half*>(codes), dim);
    head.rotate();
    half* scales = reinterpret_cast<half*>(page + kv::head_scales(dim, code_bits, cache.num_kv_heads, kv_head)) +
                   token * (dim / kv::group_features);
    bool fits = true;
#pragma unroll
    for (int i = 0; i < per_lane; i++)
        fits &= store_group(head.x[i], code_bits, codes + i * kv::group_bytes(code_bits), scales + i);
    return fits;
}

// blockIdx.x is the row, and group j of the row's groups does query head j, then the heads of k, then those of v.
template <int per_lane> EXL_KERNEL(threads) rope_and_store(exl_rope_and_store_args args, exl_kv_geometry geometry) {
    EXL_SHARED(float, lines, [groups_per_block][max_dim]);
    const exl_kv_cache& cache = args.cache;
    const int row = static_cast<int>(blockIdx.x), d = cache.head_dim;
    const int j = static_cast<int>(blockIdx.y) * groups_per_block + group();
    const int position = kv::position_of(args.rows, row);
    if (position < 0 || j >= args.num_heads + 2 * cache.num_kv_heads) return;
    const float* table = args.table ? args.table + static_cast<int64_t>(row) * args.rotary_dim : nullptr;
    Head<per_lane> head;
    if (j < args.num_heads) {
        head.load(args.q, row * args.q_stride + static_cast<int64_t>(j) * d, d);
        if (args.q_norm) head.normalize(args.q_norm, args.q_eps, d);
        if (table) head.turn(table, args.rotary_dim, lines[group()]);
        if (kv::is_packed(cache.key_bits)) head.rotate();
        half* out = static_cast<half*>(args.q_out) + row * args.q_out_stride;
        head.store_half(out + static_cast<int64_t>(j) * geometry.padded_dim, geometry.padded_dim);
        return;
    }
    const bool is_key = j < args.num_heads + cache.num_kv_heads;
    const int kv_head = (j - args.num_heads) % cache.num_kv_heads;
    head.load(is_key ? args.k : args.v, row * (is_key ? args.k_stride : args.v_stride) + kv_head * d, d);
    if (is_key && args.k_norm) head.normalize(args.k_norm, args.k_eps, d);
    if (is_key && table) head.turn(table, args.rotary_dim, lines[group()]);
    const int64_t page = kv::page_of(args.rows, args.rows.sequences[row], position / exl_page_size);
    uint8_t* base = static_cast<uint8_t*>(is_key ? cache.keys : cache.values) +
                    page * (is_key ? geometry.key_page_bytes : geometry.value_page_bytes);
    const bool fits = store_head(head, cache, base, is_key ? cache.key_bits : cache.value_bits, geometry.padded_dim,
                                 kv_head, position % exl_page_size);
    if (!fits && lane() == 0)
        atomic_compare_and_swap(reinterpret_cast<uint32_t*>(args.faults) + row, ~0u, static_cast<uint32_t>(args.layer));
}

}  // namespace rope
}  // namespace exl
