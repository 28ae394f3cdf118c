// One kernel for each header of exl: its functions on given values, one block of 32 or more lanes.
#include "exl/async_copy.h"
#include "exl/bits.h"
#include "exl/dependent_launch.h"
#include "exl/half.h"
#include "exl/math.h"
#include "exl/matrix.h"
#include "exl/matrix_shuffle.h"
#include "exl/ticket.h"
#include "exl/warp.h"

namespace exl {
namespace {

// out (rows, threads): row r is function r of the thread's own a, b, c.
EXL_KERNEL(128) bits_kernel(const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* out) {
    const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
    const uint32_t x = a[i], y = b[i], z = c[i];
    out[0 * n + i] = and_or(x, y, z);
    out[1 * n + i] = lop3<0xea>(x, y, z);
    out[2 * n + i] = lop3<0x96>(x, y, z);
    out[3 * n + i] = lop3<0x1b>(x, y, z);
    out[4 * n + i] = opaque(x);
    out[5 * n + i] = byte_perm(x, y, z & 0x7777);
    out[6 * n + i] = funnel_shift_right(x, y, z & 31);
    out[7 * n + i] = bit_field(x, 5, 7);
    out[8 * n + i] = static_cast<uint32_t>(dot4(x, y, static_cast<int32_t>(z)));
    out[9 * n + i] = static_cast<uint32_t>(dot4_unsigned(x, y, static_cast<int32_t>(z)));
    out[10 * n + i] = static_cast<uint32_t>(popcount(x));
    out[11 * n + i] = static_cast<uint32_t>(leading_zeros(x >> (z & 31)));
}

EXL_KERNEL(128) half_kernel(const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* out) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), n = static_cast<int>(gridDim.x * blockDim.x);
    const half2 x = half2_from_bits(a[i]), y = half2_from_bits(b[i]), z = half2_from_bits(c[i]);
    out[0 * n + i] = bits(fma2(x, y, z));
    out[1 * n + i] = bits(add2(x, y));
    out[2 * n + i] = bits(subtract2(x, y));
    out[3 * n + i] = bits(multiply2(x, y));
    out[4 * n + i] = bits(max2(x, y));
    out[5 * n + i] = bits(min2(x, y));
    out[6 * n + i] = bits(pair(high(x), low(x)));
    out[7 * n + i] = bits(broadcast2(low(x)));
}

// x (n) floats; widened (n): the low half of each bit pattern as a float.
EXL_KERNEL(128) convert_kernel(const float* x, uint32_t* narrow, float* widened) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), n = static_cast<int>(gridDim.x * blockDim.x);
    narrow[i] = bits(to_half(x[i]));
    narrow[n + i] = to_bfloat16(x[i]).bits;
    narrow[2 * n + i] = bits(to_half2(x[i], -x[i]));
    narrow[3 * n + i] = bit_cast<uint32_t>(to_bfloat162(x[i], -x[i]));
    const uint32_t word = bit_cast<uint32_t>(x[i]);
    widened[i] = to_float(half_from_bits(static_cast<uint16_t>(word)));
    widened[n + i] = to_float(bfloat16{static_cast<uint16_t>(word)});
    widened[2 * n + i] = to_float2(half2_from_bits(word)).y;
    widened[3 * n + i] = to_float2(bit_cast<bfloat162>(word)).y;
}

EXL_KERNEL(128) math_kernel(const float* x, float* out) {
    const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
    out[0 * n + i] = exp2_fast(x[i]);
    out[1 * n + i] = exp_fast(x[i]);
    out[2 * n + i] = reciprocal_fast(x[i]);
    out[3 * n + i] = reciprocal_sqrt(fabsf(x[i]));
    out[4 * n + i] = fused_multiply_add(x[i], x[i], -1.0f);
    out[5 * n + i] = static_cast<float>(round_to_int(x[i] * 4.0f));
}

EXL_KERNEL(128) warp_kernel(const uint32_t* x, uint32_t* out, uint64_t* wide, float* sums) {
    const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
    const uint32_t value = x[i];
    out[0 * n + i] = shuffle(value, 5);
    out[1 * n + i] = shuffle(value, lane() + 3, 8);
    out[2 * n + i] = shuffle_xor(value, 9);
    out[3 * n + i] = shuffle_down(value, 4);
    out[4 * n + i] = shuffle_down(value, 4, 16);
    out[5 * n + i] = shuffle_up(value, 3);
    out[6 * n + i] = shuffle_up(value, 3, 8);
    out[7 * n + i] = ballot(value & 1);
    out[8 * n + i] = any(value % 32 == 7);
    out[9 * n + i] = all(value % 1024 != 7);
    out[10 * n + i] = warp_max(value);
    out[11 * n + i] = warp_sum<8>(value);
    out[12 * n + i] = static_cast<uint32_t>(lane() + 100 * group());
    wide[i] = shuffle(static_cast<uint64_t>(value) << 32 | value, lane() ^ 1);
    sums[i] = warp_sum(static_cast<float>(value));
}

// Doubles 16 bytes per thread and stage through shared memory, two stages in flight; what lies behind `valid` is zero.
EXL_KERNEL(64) copy_kernel(const float4* x, float4* out, int stages, int valid) {
    EXL_SHARED(float4, tile, [2][64]);
    const int i = static_cast<int>(threadIdx.x);
    const auto issue = [&](int stage) {
        const int from = stage * 64 + i;
        copy_async(&tile[stage % 2][i], x + from, from < valid);
        copy_async_commit();
    };
    issue(0);
    for (int stage = 0; stage < stages; stage++) {
        if (stage + 1 < stages) {
            issue(stage + 1);
            copy_async_wait<1>();
        } else {
            copy_async_wait<0>();
        }
        __syncthreads();
        const float4 value = tile[stage % 2][63 - i];  // a neighbour's copy
        out[stage * 64 + i] = make_float4(2 * value.x, 2 * value.y, 2 * value.z, 2 * value.w);
        __syncthreads();
    }
}

// x: 4 matrices of 8 x 8 16-bit values. out (14, threads): x1, x2, x4 plain, then transposed.
EXL_KERNEL(64) load_matrix_kernel(const uint4* x, uint32_t* out) {
    EXL_SHARED(uint4, rows, [32]);
    const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
    if (i < 32) rows[i] = x[i];
    __syncthreads();
    uint32_t one[1], two[2], four[4];
    const auto store = [&](int row) {
        out[row * n + i] = one[0];
        for (int j = 0; j < 2; j++) out[(row + 1 + j) * n + i] = two[j];
        for (int j = 0; j < 4; j++) out[(row + 3 + j) * n + i] = four[j];
    };
    load_matrix(one, &rows[lane()]);
    load_matrix(two, &rows[lane()]);
    load_matrix(four, &rows[lane()]);
    store(0);
    load_matrix_transposed(one, &rows[lane()]);
    load_matrix_transposed(two, &rows[lane()]);
    load_matrix_transposed(four, &rows[lane()]);
    store(7);
}

// The same with the text for devices without the instruction.
EXL_KERNEL(64) load_matrix_shuffled_kernel(const uint4* x, uint32_t* out) {
    EXL_SHARED(uint4, rows, [32]);
    const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
    if (i < 32) rows[i] = x[i];
    __syncthreads();
    uint32_t one[1], two[2], four[4];
    const auto store = [&](int row) {
        out[row * n + i] = one[0];
        for (int j = 0; j < 2; j++) out[(row + 1 + j) * n + i] = two[j];
        for (int j = 0; j < 4; j++) out[(row + 3 + j) * n + i] = four[j];
    };
    shuffled::load_matrix(one, &rows[lane()]);
    shuffled::load_matrix(two, &rows[lane()]);
    shuffled::load_matrix(four, &rows[lane()]);
    store(0);
    shuffled::load_matrix_transposed(one, &rows[lane()]);
    shuffled::load_matrix_transposed(two, &rows[lane()]);
    shuffled::load_matrix_transposed(four, &rows[lane()]);
    store(7);
}

enum class Product { f16, bf16, s8, u8s8 };

template <Product product, class T>
EXL_DEVICE void multiply(T (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (product == Product::f16) mma_f16(c, a, b);
    if constexpr (product == Product::bf16) mma_bf16(c, a, b);
    if constexpr (product == Product::s8) mma_s8(c, a, b);
    if constexpr (product == Product::u8s8) mma_u8s8(c, a, b);
}

template <Product product, class T>
EXL_DEVICE void multiply_shuffled(T (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (product == Product::f16) shuffled::multiply<shuffled::Half>(c, a, b);
    if constexpr (product == Product::bf16) shuffled::multiply<shuffled::BFloat16>(c, a, b);
    if constexpr (product == Product::s8) shuffled::multiply<shuffled::SignedBytes>(c, a, b);
    if constexpr (product == Product::u8s8) shuffled::multiply<shuffled::UnsignedBytes>(c, a, b);
}

// For each group of lanes: c (16, 8) += a (16, k) b (k, 8) from row-major a and column-major b, 8 words a row or column.
template <Product product, bool plain, class T> EXL_KERNEL(64)
product_kernel(const uint32_t* a, const uint32_t* b, T* c) {
    const int major = lane() / 4, minor = lane() % 4, problem = group();
    a += problem * 16 * 8;
    b += problem * 8 * 8;
    c += problem * 16 * 8;
    const uint32_t left[4] = {a[major * 8 + minor], a[(major + 8) * 8 + minor], a[major * 8 + minor + 4],
                              a[(major + 8) * 8 + minor + 4]};
    const uint32_t right[2] = {b[major * 8 + minor], b[major * 8 + minor + 4]};
    T* top = c + major * 8 + 2 * minor;
    T sums[4] = {top[0], top[1], top[64], top[65]};
    if constexpr (plain)
        multiply<product>(sums, left, right);
    else
        multiply_shuffled<product>(sums, left, right);
    top[0] = sums[0];
    top[1] = sums[1];
    top[64] = sums[2];
    top[65] = sums[3];
}

template <Product product, class T>
exl_status launch_product(const void* a, const void* b, void* c, int32_t groups, int32_t plain, exl_stream stream) {
    const auto* left = static_cast<const uint32_t*>(a);
    const auto* right = static_cast<const uint32_t*>(b);
    auto* sums = static_cast<T*>(c);
    if (plain) return EXL_LAUNCH((product_kernel<product, true, T>), 1, 32 * groups, 0, stream, left, right, sums);
    return EXL_LAUNCH((product_kernel<product, false, T>), 1, 32 * groups, 0, stream, left, right, sums);
}

EXL_KERNEL(128) atomics_kernel(uint32_t* words, uint64_t* wide, float* sum, int64_t* greatest) {
    atomic_add(&words[0], 3u);
    atomic_add(&wide[0], uint64_t(1) << 33);
    atomic_add(sum, 0.5f);
    atomic_max(&words[1], static_cast<uint32_t>(threadIdx.x * 7 % 101));
    atomic_max(greatest, static_cast<int64_t>(threadIdx.x) * (int64_t(1) << 32) - 5);
    // A counter made of compare-and-swap.
    uint32_t seen = 0;
    for (uint32_t found; (found = atomic_compare_and_swap(&words[2], seen, seen + 1)) != seen;) seen = found;
    uint64_t seen_wide = 0;
    for (uint64_t found; (found = atomic_compare_and_swap(&wide[1], seen_wide, seen_wide + 2)) != seen_wide;)
        seen_wide = found;
}

// Each block sums its slice of x; the last to arrive adds the slices in order.
EXL_KERNEL(128) sum_kernel(const float* x, float* partial, uint32_t* ticket, float* out, int slice) {
    EXL_SHARED(float, sums, [4]);
    float mine = 0;
    for (int i = static_cast<int>(threadIdx.x); i < slice; i += static_cast<int>(blockDim.x))
        mine += x[blockIdx.x * slice + i];
    mine = warp_sum(mine);
    if (lane() == 0) sums[group()] = mine;
    __syncthreads();
    if (threadIdx.x == 0) partial[blockIdx.x] = sums[0] + sums[1] + sums[2] + sums[3];
    if (!last_block_arrives(ticket, gridDim.x)) return;
    if (threadIdx.x != 0) return;
    float total = 0;
    for (uint32_t block = 0; block < gridDim.x; block++) total += load_coherent(&partial[block]);
    *out = total;
}

// Dynamic shared memory, a barrier that counts, a launch that depends on the one before.
EXL_KERNEL(1024) reverse_kernel(const float* x, float* out, uint32_t* count) {
    EXL_DYNAMIC_SHARED(float, scratch);
    wait_for_previous_kernel();
    const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
    scratch[i] = x[i];
    const int negative = __syncthreads_count(x[i] < 0);
    out[i] = scratch[n - 1 - i];
    let_next_kernel_start();
    if (i == 0) *count = static_cast<uint32_t>(negative);
}

}  // namespace
}  // namespace exl

using namespace exl;

EXL_API exl_status test_bits(const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* out, int32_t n,
                             exl_stream stream) {
    return EXL_LAUNCH(bits_kernel, 1, n, 0, stream, a, b, c, out);
}
EXL_API exl_status test_half(const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* out, int32_t n,
                             exl_stream stream) {
    return EXL_LAUNCH(half_kernel, n / 128, 128, 0, stream, a, b, c, out);
}
EXL_API exl_status test_convert(const float* x, uint32_t* narrow, float* widened, int32_t n, exl_stream stream) {
    return EXL_LAUNCH(convert_kernel, n / 128, 128, 0, stream, x, narrow, widened);
}
EXL_API exl_status test_math(const float* x, float* out, int32_t n, exl_stream stream) {
    return EXL_LAUNCH(math_kernel, 1, n, 0, stream, x, out);
}
EXL_API exl_status test_warp(const uint32_t* x, uint32_t* out, uint64_t* wide, float* sums, int32_t n,
                             exl_stream stream) {
    return EXL_LAUNCH(warp_kernel, 1, n, 0, stream, x, out, wide, sums);
}
EXL_API exl_status test_copy(const float4* x, float4* out, int32_t stages, int32_t valid, exl_stream stream) {
    return EXL_LAUNCH(copy_kernel, 1, 64, 0, stream, x, out, stages, valid);
}
EXL_API exl_status test_load_matrix(const uint4* x, uint32_t* out, int32_t plain, exl_stream stream) {
    if (plain) return EXL_LAUNCH(load_matrix_kernel, 1, 64, 0, stream, x, out);
    return EXL_LAUNCH(load_matrix_shuffled_kernel, 1, 64, 0, stream, x, out);
}
EXL_API exl_status test_product(int32_t type, const void* a, const void* b, void* c, int32_t groups, int32_t plain,
                                exl_stream stream) {
    switch (static_cast<Product>(type)) {
        case Product::f16: return launch_product<Product::f16, float>(a, b, c, groups, plain, stream);
        case Product::bf16: return launch_product<Product::bf16, float>(a, b, c, groups, plain, stream);
        case Product::s8: return launch_product<Product::s8, int32_t>(a, b, c, groups, plain, stream);
        case Product::u8s8: return launch_product<Product::u8s8, int32_t>(a, b, c, groups, plain, stream);
    }
    return refuse(exl_bad_dtype, "type", "found %d, expected 0 to 3", type);
}
EXL_API exl_status test_atomics(uint32_t* words, uint64_t* wide, float* sum, int64_t* greatest, exl_stream stream) {
    return EXL_LAUNCH(atomics_kernel, 8, 128, 0, stream, words, wide, sum, greatest);
}
EXL_API exl_status test_sum(const float* x, float* partial, uint32_t* ticket, float* out, int32_t slice, int32_t blocks,
                            exl_stream stream) {
    return EXL_LAUNCH(sum_kernel, blocks, 128, 0, stream, x, partial, ticket, out, slice);
}
EXL_API exl_status test_reverse(const float* x, float* out, uint32_t* count, int32_t n, exl_stream stream) {
    EXL_TRY(EXL_LAUNCH_DEPENDENT(reverse_kernel, 1, n, n * sizeof(float), stream, x, out, count));
    return EXL_LAUNCH_DEPENDENT(reverse_kernel, 1, n, n * sizeof(float), stream, x, out, count);
}
