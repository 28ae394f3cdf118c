#include "logits/logits.h"

#include "exl/half.h"

#include <math.h>

namespace {

using namespace exl;

constexpr int threads = 256;

template <class T> EXL_KERNEL(threads) cap_logits(exl_logits_args args) {
    const int64_t row = blockIdx.x;
    const int i = static_cast<int>(blockIdx.y * threads + threadIdx.x);
    if (i >= args.vocab) return;
    const float x = to_float(static_cast<const T*>(args.x)[row * args.x_stride + i]);
    args.out[row * args.out_stride + i] = args.softcap > 0.0f ? args.softcap * tanhf(x / args.softcap) : x;
}

}  // namespace

EXL_API exl_status exl_logits(const exl_logits_args* args, exl_stream stream) {
    EXL_REQUIRE(args->rows > 0, exl_bad_shape, "rows", "found %d, expected at least 1", args->rows);
    EXL_REQUIRE(args->vocab > 0 && args->vocab <= 65535 * threads, exl_bad_shape, "vocab", "found %d, expected 1 to %d",
                args->vocab, 65535 * threads);
    EXL_REQUIRE(args->x_type == exl_f32 || args->x_type == exl_f16, exl_bad_dtype, "x_type",
                "found %d, expected fp32 or fp16", static_cast<int>(args->x_type));
    EXL_REQUIRE_ALIGNED(args->x, args->x_type == exl_f32 ? 4 : 2);
    EXL_REQUIRE_ALIGNED(args->out, 4);
    EXL_REQUIRE(args->x_stride >= args->vocab, exl_bad_shape, "x_stride", "found %lld, expected at least %d",
                static_cast<long long>(args->x_stride), args->vocab);
    EXL_REQUIRE(args->out_stride >= args->vocab, exl_bad_shape, "out_stride", "found %lld, expected at least %d",
                static_cast<long long>(args->out_stride), args->vocab);
    EXL_REQUIRE(args->softcap >= 0.0f, exl_bad_argument, "softcap", "found %g, expected 0 or more",
                static_cast<double>(args->softcap));
    const dim3 grid(static_cast<uint32_t>(args->rows), static_cast<uint32_t>((args->vocab + threads - 1) / threads));
    if (args->x_type == exl_f16) return EXL_LAUNCH(cap_logits<half>, grid, threads, 0, stream, *args);
    return EXL_LAUNCH(cap_logits<float>, grid, threads, 0, stream, *args);
}
