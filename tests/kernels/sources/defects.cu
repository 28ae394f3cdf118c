// Small kernels of the usual shapes, each with defects that can be planted: tests/kernels/test_defects.py checks that
// the tool named there reports each of them, and that the kernels without a defect are silent.
#include "exl/async_copy.h"
#include "exl/half.h"
#include "exl/matrix.h"
#include "exl/ticket.h"
#include "exl/warp.h"

namespace exl {
namespace {

enum class Defect {
    none,
    no_wait,                // asynchronous copies are never waited for
    no_sync_before_read,    // a tile is read before all threads' copies have arrived
    no_sync_after_read,     // ... and overwritten before all threads have read it
    shared_out_of_bounds,   // the rows of a tile are farther apart than it was made for
    misaligned_row,         // ... and not at multiples of 16 bytes
    half_wave,              // one group of a wave of 64 skips a matrix product
    no_sync_before_reduce,  // warps' partial sums are read before they are written
    divergent_shuffle,      // one lane skips a shuffle
    early_exit,             // lanes behind the end return before a shuffle
    other_barrier,          // one path of a branch waits at a barrier of its own
    no_sync_warp,           // a neighbour's shared value is read without sync_warp
    misaligned_store,       // 16 bytes are stored at a multiple of 4
    global_out_of_bounds,   // the guard lets one thread too many through
    no_atomic,              // blocks add to one place without an atomic
    no_ticket,              // a block sums what others write without waiting for them
};

// c (16, 64) = a (16, k) x b (k, 64) by 4 groups of lanes: copies in two stages, fragments from shared memory.
template <Defect defect> EXL_KERNEL(128) product_kernel(const half* a, const half* b, float* c, int k) {
    constexpr int depth = 32, columns = 64, b_row = columns + 8;
    constexpr int a_row = depth + (defect == Defect::misaligned_row ? 4 : 8);
    EXL_SHARED(half, a_tile, [2][16 * a_row]);
    EXL_SHARED(half, b_tile, [2][depth * b_row]);
    const int thread = static_cast<int>(threadIdx.x);
    const auto fetch = [&](int stage, int from) {
        if (thread < 64)
            copy_async(&a_tile[stage][thread / 4 * a_row + thread % 4 * 8], a + thread / 4 * k + from + thread % 4 * 8);
        for (int i = thread; i < depth * columns / 8; i += 128)
            copy_async(&b_tile[stage][i / 8 * b_row + i % 8 * 8], b + (from + i / 8) * columns + i % 8 * 8);
        copy_async_commit();
    };
    float sums[2][4] = {};
    fetch(0, 0);
    for (int step = 0; step < k / depth; step++) {
        const int stage = step % 2;
        const bool more = step + 1 < k / depth;
        if (more) fetch(1 - stage, (step + 1) * depth);
        if constexpr (defect != Defect::no_wait) {
            if (more)
                copy_async_wait<1>();
            else
                copy_async_wait<0>();
        }
        if constexpr (defect != Defect::no_sync_before_read) __syncthreads();
        for (int at = 0; at < depth; at += 16) {
            constexpr int row = a_row + (defect == Defect::shared_out_of_bounds ? 8 : 0);
            uint32_t left[4], right[2];
            load_matrix(left, &a_tile[stage][lane() % 16 * row + at + lane() / 16 * 8]);
            for (int j = 0; j < 2; j++) {
                load_matrix_transposed(right, &b_tile[stage][(at + lane() % 16) * b_row + group() * 16 + j * 8]);
                if (defect != Defect::half_wave || group() != 1) mma_f16(sums[j], left, right);
            }
        }
        if constexpr (defect != Defect::no_sync_after_read) __syncthreads();
    }
    for (int j = 0; j < 2; j++) {
        float* out = c + lane() / 4 * columns + group() * 16 + j * 8 + lane() % 4 * 2;
        out[0] = sums[j][0];
        out[1] = sums[j][1];
        out[8 * columns] = sums[j][2];
        out[8 * columns + 1] = sums[j][3];
    }
}

// out[0] = the sum of x (n), by 4 groups.
template <Defect defect> EXL_KERNEL(128) sum_kernel(const float* x, float* out, int n) {
    EXL_SHARED(float, partial, [4]);
    const int thread = static_cast<int>(threadIdx.x);
    if (defect == Defect::early_exit && thread >= n) return;
    float sum = thread < n ? x[thread] : 0.0f;
    for (int distance = 16; distance > 0; distance /= 2)
        if (defect != Defect::divergent_shuffle || lane() < 31) sum += shuffle_xor(sum, distance);
    if (lane() == 0) {
        partial[group()] = sum;
        if constexpr (defect == Defect::other_barrier) {
            __syncthreads();
            return;
        }
    }
    if constexpr (defect != Defect::no_sync_before_reduce) __syncthreads();
    if (thread == 33) out[0] = partial[0] + partial[1] + partial[2] + partial[3];
}

// One group: each lane passes four floats to its neighbour through shared memory.
template <Defect defect> EXL_KERNEL(32) swap_kernel(const float* x, float* out) {
    EXL_SHARED(float4, values, [32]);
    values[lane()] = make_float4(x[4 * lane()], x[4 * lane() + 1], x[4 * lane() + 2], x[4 * lane() + 3]);
    if constexpr (defect != Defect::no_sync_warp) sync_warp();
    float* to = out + (defect == Defect::misaligned_store ? 1 : 0);
    *reinterpret_cast<float4*>(to + 4 * (lane() ^ 1)) = values[lane() ^ 1];
}

template <Defect defect> EXL_KERNEL(64) scale_kernel(const float* x, float* out, int n) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (defect == Defect::global_out_of_bounds ? i <= n : i < n) out[i] = 2 * x[i];
}

// out[i] = the sum over blocks of x (blocks, 64).
template <Defect defect> EXL_KERNEL(64) column_kernel(const float* x, float* out) {
    const int i = static_cast<int>(threadIdx.x);
    const float value = x[blockIdx.x * 64 + i];
    if constexpr (defect == Defect::no_atomic)
        out[i] += value;
    else
        atomic_add(&out[i], value);
}

// out[0] = the sum of what blocks leave in partial.
template <Defect defect> EXL_KERNEL(32) ticket_kernel(const float* x, float* partial, uint32_t* ticket, float* out) {
    if (threadIdx.x == 0) partial[blockIdx.x] = x[blockIdx.x];
    const bool last = defect == Defect::no_ticket ? blockIdx.x == gridDim.x - 1 : last_block_arrives(ticket, gridDim.x);
    if (!last || threadIdx.x != 0) return;
    float sum = 0;
    for (uint32_t i = 0; i < gridDim.x; i++) sum += load_coherent(&partial[i]);
    out[0] = sum;
}

template <Defect defect> exl_status run(const float* x, float* out, exl_stream stream) {
    // Scratch at the end of what `out` has room for: 1024 floats of results, then partial sums and the ticket.
    float* partial = out + 1024;
    auto* ticket = reinterpret_cast<uint32_t*>(out + 2047);
    const auto* halves = reinterpret_cast<const half*>(x);
    if constexpr (defect == Defect::none || (defect >= Defect::no_wait && defect <= Defect::half_wave))
        EXL_TRY(EXL_LAUNCH(product_kernel<defect>, 1, 128, 0, stream, halves, halves, out, 128));
    if constexpr (defect == Defect::none ||
                  (defect >= Defect::no_sync_before_reduce && defect <= Defect::other_barrier))
        EXL_TRY(EXL_LAUNCH(sum_kernel<defect>, 1, 128, 0, stream, x, out, 100));
    if constexpr (defect == Defect::none || defect == Defect::no_sync_warp || defect == Defect::misaligned_store)
        EXL_TRY(EXL_LAUNCH(swap_kernel<defect>, 1, 32, 0, stream, x, out));
    if constexpr (defect == Defect::none || defect == Defect::global_out_of_bounds)
        EXL_TRY(EXL_LAUNCH(scale_kernel<defect>, 32, 64, 0, stream, x, out, defect == Defect::none ? 1024 : 2048 - 64));
    if constexpr (defect == Defect::none || defect == Defect::no_atomic)
        EXL_TRY(EXL_LAUNCH(column_kernel<defect>, 16, 64, 0, stream, x, out));
    if constexpr (defect == Defect::none || defect == Defect::no_ticket)
        EXL_TRY(EXL_LAUNCH(ticket_kernel<defect>, 16, 32, 0, stream, x, partial, ticket, out));
    return exl_ok;
}

}  // namespace
}  // namespace exl

// x (4096) floats, out (2048 - 64) or, for the others, 2048 floats, zeroed.
EXL_API exl_status test_defect(int32_t defect, const float* x, float* out, exl_stream stream) {
    using exl::Defect;
#define EXL_CASE(name) \
    case Defect::name: return exl::run<Defect::name>(x, out, stream);
    switch (static_cast<Defect>(defect)) {
        EXL_CASE(none)
        EXL_CASE(no_wait)
        EXL_CASE(no_sync_before_read)
        EXL_CASE(no_sync_after_read)
        EXL_CASE(shared_out_of_bounds)
        EXL_CASE(misaligned_row)
        EXL_CASE(half_wave)
        EXL_CASE(no_sync_before_reduce)
        EXL_CASE(divergent_shuffle)
        EXL_CASE(early_exit)
        EXL_CASE(other_barrier)
        EXL_CASE(no_sync_warp)
        EXL_CASE(misaligned_store)
        EXL_CASE(global_out_of_bounds)
        EXL_CASE(no_atomic)
        EXL_CASE(no_ticket)
    }
#undef EXL_CASE
    return exl::refuse(exl_bad_argument, "defect", "found %d", defect);
}
