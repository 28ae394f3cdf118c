// The launcher of products with dense weights.
#include "gemm/dense.h"

#include "gemm/dense.cuh"
#include "gemm/instances.cuh"
#include "gemm/launch.h"

namespace exl {
namespace gemm {
namespace {

int item_bytes(exl_dtype dtype) { return dtype == exl_f32 ? 4 : 2; }

struct DenseFamily {
    using Args = exl_dense_linear_args;
    using Weight = exl_dense;
    static constexpr const char* format = "weight.dtype";

    static Call call(const Args& args) {
        return {args.x, args.x_stride, args.rows, args.activation, 0, &args.workspace};
    }
    static Matrix matrix(const Args& args, int i) {
        const Weight& weight = args.projections[i].weight;
        const int64_t tile_stride = weight.stride * tile_rows * item_bytes(weight.dtype);
        return {weight.data, tile_stride, weight.rows, weight.cols, &args.projections[i].output};
    }
    static bool same(const Weight& a, const Weight& b) { return a.dtype == b.dtype; }

    static exl_status check(const Weight& weight, int i) {
        EXL_REQUIRE(weight.dtype >= exl_f32 && weight.dtype <= exl_bf16, exl_bad_dtype, Name(i, "weight.dtype"),
                    "found %d, expected f32, f16 or bf16", static_cast<int>(weight.dtype));
        EXL_REQUIRE(weight.cols % 8 == 0, exl_bad_shape, Name(i, "weight.cols"), "found %d, expected a multiple of 8",
                    weight.cols);
        EXL_REQUIRE(weight.stride >= weight.cols, exl_bad_shape, Name(i, "weight.stride"),
                    "found %lld, expected at least %d", static_cast<long long>(weight.stride), weight.cols);
        EXL_REQUIRE(weight.stride * item_bytes(weight.dtype) % 16 == 0, exl_misaligned, Name(i, "weight.stride"),
                    "found %lld elements, expected a multiple of 16 bytes", static_cast<long long>(weight.stride));
        return exl_ok;
    }
    static exl_status launch(const Weight& weight, const Problem& problem, const Shape& shape, exl_stream stream) {
        switch (weight.dtype) {
            case exl_f16: return launch_format<Dense<half>>(problem, shape, stream);
            case exl_bf16: return launch_format<Dense<bfloat16>>(problem, shape, stream);
            default: return launch_format<Dense<float>>(problem, shape, stream);
        }
    }
};

}  // namespace
}  // namespace gemm
}  // namespace exl

using exl::gemm::DenseFamily;
using exl::gemm::Launcher;

EXL_API exl_status exl_dense_linear_workspace(const exl_dense_linear_args* args, int64_t* partial_bytes,
                                              int64_t* num_tickets) {
    return Launcher<DenseFamily>::workspace(args, partial_bytes, num_tickets);
}

EXL_API exl_status exl_dense_linear(const exl_dense_linear_args* args, exl_stream stream) {
    return Launcher<DenseFamily>::linear(args, stream);
}
