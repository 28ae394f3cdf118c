// The launcher of products with dense weights: checks, one launch for each type.
#include "gemm/dense.h"

#include <cstdio>

#include "gemm/dense.cuh"

namespace exl {
namespace gemm {
namespace {

template <class T, int token_tiles>
exl_status launch_tiles(const Problem& problem, const Shape& shape, exl_stream stream) {
    using P = Plan<Dense<T>, token_tiles>;
    return EXL_LAUNCH_DEPENDENT((multiply_dense<T, token_tiles>), shape.grid, P::threads, P::shared_bytes, stream,
                                problem);
}

template <class T> exl_status launch_type(const Problem& problem, const Shape& shape, exl_stream stream) {
    switch (shape.token_tiles) {
        case 1: return launch_tiles<T, 1>(problem, shape, stream);
        case 2: return launch_tiles<T, 2>(problem, shape, stream);
        case 4: return launch_tiles<T, 4>(problem, shape, stream);
        default: return launch_tiles<T, 8>(problem, shape, stream);
    }
}

int item_bytes(exl_dtype dtype) { return dtype == exl_f32 ? 4 : 2; }

exl_status launch(exl_dtype dtype, const Problem& problem, const Shape& shape, exl_stream stream) {
    switch (dtype) {
        case exl_f16: return launch_type<half>(problem, shape, stream);
        case exl_bf16: return launch_type<bfloat16>(problem, shape, stream);
        default: return launch_type<float>(problem, shape, stream);
    }
}

int64_t tile_stride(const exl_dense& weight) { return weight.stride * tile_rows * item_bytes(weight.dtype); }

// Projections of one type, in the order of the arguments; returns their number.
int collect(const exl_dense_linear_args& args, exl_dtype dtype, Call& call, Matrix* matrices) {
    call = {args.x, args.x_stride, args.rows, args.activation, 0, &args.workspace};
    for (int i = 0; i < args.num_projections; i++) {
        const exl_dense& weight = args.projections[i].weight;
        if (weight.dtype != dtype) continue;
        matrices[call.count++] = {weight.data, tile_stride(weight), weight.rows, weight.cols,
                                  &args.projections[i].output};
    }
    return call.count;
}

// All projections together: names in messages count as in the arguments.
exl_status check_weights(const exl_dense_linear_args& args, Call& call, Matrix* matrices) {
    call = {args.x, args.x_stride, args.rows, args.activation, args.num_projections, &args.workspace};
    for (int i = 0; i < args.num_projections && i < exl_max_projections; i++) {
        const exl_dense& weight = args.projections[i].weight;
        matrices[i] = {weight.data, 0, weight.rows, weight.cols, &args.projections[i].output};
    }
    EXL_TRY(check_sizes(call, matrices));
    for (int i = 0; i < args.num_projections; i++) {
        const exl_dense& weight = args.projections[i].weight;
        const auto name = [i](const char* field) {
            static thread_local char text[64];
            std::snprintf(text, sizeof text, "projections[%d].weight.%s", i, field);
            return text;
        };
        EXL_REQUIRE(weight.dtype >= exl_f32 && weight.dtype <= exl_bf16, exl_bad_dtype, name("dtype"),
                    "found %d, expected f32, f16 or bf16", static_cast<int>(weight.dtype));
        EXL_REQUIRE(args.activation == exl_no_activation || weight.dtype == args.projections[0].weight.dtype,
                    exl_bad_dtype, name("dtype"),
                    "found another type than in the first projection, expected one for both");
        EXL_REQUIRE(weight.cols % 8 == 0, exl_bad_shape, name("cols"), "found %d, expected a multiple of 8",
                    weight.cols);
        EXL_REQUIRE(weight.stride >= weight.cols, exl_bad_shape, name("stride"), "found %lld, expected at least %d",
                    static_cast<long long>(weight.stride), weight.cols);
        EXL_REQUIRE(weight.stride * item_bytes(weight.dtype) % 16 == 0, exl_misaligned, name("stride"),
                    "found %lld elements, expected a multiple of 16 bytes", static_cast<long long>(weight.stride));
    }
    return exl_ok;
}

}  // namespace
}  // namespace gemm
}  // namespace exl

using namespace exl::gemm;

EXL_API exl_status exl_dense_linear_workspace(const exl_dense_linear_args* args, int64_t* partial_bytes,
                                              int64_t* num_tickets) {
    EXL_REQUIRE(args && partial_bytes && num_tickets, exl_bad_argument, "args", "found a null pointer");
    Call call;
    Matrix matrices[exl_max_projections];
    EXL_TRY(check_weights(*args, call, matrices));
    *partial_bytes = *num_tickets = 0;
    for (exl_dtype dtype : {exl_f32, exl_f16, exl_bf16}) {
        if (!collect(*args, dtype, call, matrices)) continue;
        Problem problem = {};
        const Shape shape = plan(call, matrices, problem);
        if (shape.partial_bytes > *partial_bytes) *partial_bytes = shape.partial_bytes;
        if (shape.num_tickets > *num_tickets) *num_tickets = shape.num_tickets;
    }
    return exl_ok;
}

EXL_API exl_status exl_dense_linear(const exl_dense_linear_args* args, exl_stream stream) {
    EXL_REQUIRE(args, exl_bad_argument, "args", "found a null pointer");
    Call call;
    Matrix matrices[exl_max_projections];
    EXL_TRY(check_weights(*args, call, matrices));
    Shape all = {};
    EXL_TRY(exl_dense_linear_workspace(args, &all.partial_bytes, &all.num_tickets));
    EXL_TRY(check_memory(call, matrices, all));
    for (exl_dtype dtype : {exl_f32, exl_f16, exl_bf16}) {
        if (!collect(*args, dtype, call, matrices)) continue;
        Problem problem = {};
        const Shape shape = plan(call, matrices, problem);
        bind(call, matrices, problem);
        EXL_TRY(launch(dtype, problem, shape, stream));
    }
    return exl_ok;
}
