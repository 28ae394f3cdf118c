// The input rotation of Trellis weights.
#include "gemm/hadamard.h"

#include "exl/hadamard.h"
#include "exl/half.h"
#include "gemm/launch.h"

namespace exl {
namespace gemm {
namespace {

constexpr int hadamard_threads = 128, blocks_at_once = hadamard_threads / group_size;

int hadamard_blocks(int cols) { return (cols + hadamard_size - 1) / hadamard_size; }

EXL_KERNEL(hadamard_threads) rotate_rows(exl_hadamard_args args) {
    const int first = (static_cast<int>(blockIdx.x) * blocks_at_once + group()) * hadamard_size;
    if (first >= args.cols) return;
    const int column = first + lane() * 4, which = static_cast<int>(blockIdx.z);
    const int64_t row = blockIdx.y;
    const half* x = static_cast<const half*>(args.x) + row * args.x_stride;
    const half* suh = static_cast<const half*>(args.suh[0]);
#pragma unroll
    for (int i = 1; i < exl_max_projections; i++)  // constant indices: arguments stay where they are
        if (which == i) suh = static_cast<const half*>(args.suh[i]);
    float values[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        values[i] = column + i < args.cols ? to_float(x[column + i]) * to_float(suh[column + i]) : 0.0f;
    rotate128(values);
    half* out = static_cast<half*>(args.out) + which * args.out_step + row * args.out_stride;
    const uint2 packed = {bits(to_half2(values[0], values[1])), bits(to_half2(values[2], values[3]))};
    *reinterpret_cast<uint2*>(out + column) = packed;
}

exl_status check(const exl_hadamard_args& args) {
    EXL_REQUIRE(args.rows > 0 && args.rows <= 65535, exl_bad_shape, "rows", "found %d, expected 1 to 65535", args.rows);
    EXL_REQUIRE(args.cols > 0 && args.cols <= 1 << 24, exl_bad_shape, "cols", "found %d, expected 1 to %d", args.cols,
                1 << 24);
    EXL_REQUIRE(args.num_outputs > 0 && args.num_outputs <= exl_max_projections, exl_bad_argument, "num_outputs",
                "found %d, expected 1 to %d", args.num_outputs, static_cast<int>(exl_max_projections));
    EXL_REQUIRE_ALIGNED(args.x, 2);
    EXL_REQUIRE_ALIGNED(args.out, 8);
    for (int i = 0; i < args.num_outputs; i++) EXL_REQUIRE_ALIGNED(args.suh[i], 2);
    EXL_REQUIRE(args.x_stride >= args.cols, exl_bad_shape, "x_stride", "found %lld, expected at least %d",
                static_cast<long long>(args.x_stride), args.cols);
    EXL_REQUIRE(args.out_stride % 4 == 0 && args.out_step % 4 == 0, exl_misaligned, "out_stride",
                "found %lld and a step of %lld, expected multiples of 4 elements",
                static_cast<long long>(args.out_stride), static_cast<long long>(args.out_step));
    const int padded = hadamard_blocks(args.cols) * hadamard_size;
    EXL_REQUIRE(args.out_stride >= padded, exl_bad_shape, "out_stride", "found %lld, expected at least %d",
                static_cast<long long>(args.out_stride), padded);
    return exl_ok;
}

}  // namespace
}  // namespace gemm
}  // namespace exl

EXL_API exl_status exl_hadamard(const exl_hadamard_args* args, exl_stream stream) {
    using namespace exl::gemm;
    EXL_REQUIRE(args, exl_bad_argument, "args", "found a null pointer");
    EXL_TRY(check(*args));
    const int blocks = (hadamard_blocks(args->cols) + blocks_at_once - 1) / blocks_at_once;
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(args->rows),
                    static_cast<unsigned>(args->num_outputs));
    return EXL_LAUNCH(rotate_rows, grid, hadamard_threads, 0, stream, *args);
}
