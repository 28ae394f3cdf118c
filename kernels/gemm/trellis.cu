// The launcher of products with Trellis weights.
#include "gemm/trellis.h"

#include "gemm/launch.h"
#include "gemm/trellis_launch.h"

namespace exl {
namespace gemm {
namespace {

constexpr int block = 128;

int padded(int size) { return (size + block - 1) / block * block; }

const TrellisEntry* find(const exl_trellis& weight) {
    return weight.codebook == exl_mul1 ? find_sum_of_bytes(weight.rate2) : find_sum_of_halves(weight.rate2);
}

Multiplier multiplier(const exl_trellis& weight) {
    switch (weight.codebook) {
        case exl_3inst: return {89226354u, 64248484u};
        case exl_mcg: return {0xCBAC1FEDu, 0};
        case exl_mul1: return {0x83DCD12Du, 0};
    }
    return {0, 0};
}

struct TrellisFamily {
    using Args = exl_trellis_linear_args;
    using Weight = exl_trellis;
    static constexpr const char* format = "weight.rate2";

    static Call call(const Args& args) {
        return {args.x, args.x_stride, args.rows, exl_no_activation, 0, &args.workspace, trellis_token_tiles};
    }
    static Matrix matrix(const Args& args, int i) {
        const Weight& weight = args.projections[i].weight;
        const int cols = weight.cols > 0 && weight.cols <= 1 << 24 ? padded(weight.cols) : weight.cols;
        return {weight.data, 0, weight.rows, cols, &args.projections[i].output, i * args.x_step, weight.svh};
    }
    static bool same(const Weight& a, const Weight& b) { return a.rate2 == b.rate2 && a.codebook == b.codebook; }

    static exl_status check(const Weight& weight, int i) {
        EXL_REQUIRE(weight.codebook >= exl_3inst && weight.codebook <= exl_mul1, exl_bad_dtype,
                    Name(i, "weight.codebook"), "found %d, expected an exl_codebook",
                    static_cast<int>(weight.codebook));
        EXL_REQUIRE(find(weight), exl_bad_dtype, Name(i, "weight.rate2"), "found %d, which the codebook does not have",
                    weight.rate2);
        EXL_REQUIRE(weight.rows > 0, exl_bad_shape, Name(i, "weight.rows"), "found %d, expected at least 1",
                    weight.rows);
        EXL_REQUIRE(weight.cols > 0, exl_bad_shape, Name(i, "weight.cols"), "found %d, expected at least 1",
                    weight.cols);
        return exl_ok;
    }
    static exl_status launch(const Weight& weight, Problem& problem, const Shape& shape, exl_stream stream) {
        const Multiplier m = multiplier(weight);
        problem.factor = m.factor, problem.addend = m.addend;
        return find(weight)->multiply(problem, shape, stream);
    }
};

}  // namespace
}  // namespace gemm
}  // namespace exl

using namespace exl::gemm;

EXL_API exl_status exl_trellis_linear_workspace(const exl_trellis_linear_args* args, int64_t* partial_bytes,
                                                int64_t* num_tickets) {
    return Launcher<TrellisFamily>::workspace(args, partial_bytes, num_tickets);
}

EXL_API exl_status exl_trellis_linear(const exl_trellis_linear_args* args, exl_stream stream) {
    EXL_REQUIRE(args, exl_bad_argument, "args", "found a null pointer");
    EXL_REQUIRE(args->x_step % 8 == 0, exl_misaligned, "x_step", "found %lld, expected a multiple of 8 elements",
                static_cast<long long>(args->x_step));
    for (int i = 0; i < args->num_projections && i < exl_max_projections; i++)
        EXL_REQUIRE(args->projections[i].weight.svh, exl_bad_argument, Name(i, "weight.svh"), "found a null pointer");
    return Launcher<TrellisFamily>::linear(args, stream);
}

EXL_API exl_status exl_trellis_expand(const exl_trellis* weight, const exl_expand_args* args, exl_stream stream) {
    EXL_REQUIRE(weight && args, exl_bad_argument, "args", "found a null pointer");
    EXL_TRY(TrellisFamily::check(*weight, -1));
    EXL_REQUIRE_ALIGNED(weight->data, 16);
    EXL_REQUIRE_ALIGNED(args->out, 16);
    EXL_REQUIRE(args->out_stride % 8 == 0, exl_misaligned, "out_stride",
                "found %lld, expected a multiple of 8 elements", static_cast<long long>(args->out_stride));
    EXL_REQUIRE(args->out_stride >= padded(weight->cols), exl_bad_shape, "out_stride",
                "found %lld, expected at least %d", static_cast<long long>(args->out_stride), padded(weight->cols));
    const Tiles tiles = {static_cast<const uint8_t*>(weight->data), padded(weight->rows) / tile_rows,
                         padded(weight->cols) / tile_rows};
    return find(*weight)->expand(tiles, multiplier(*weight), *args, stream);
}
