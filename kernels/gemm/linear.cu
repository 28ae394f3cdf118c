// What the launchers of all weight families share: checks, and the split of a launch into blocks.
#include "gemm/linear.h"

#include <algorithm>

#include "gemm/launch.h"

namespace exl {
namespace gemm {

namespace {

constexpr int largest = 1 << 24;
constexpr int token_tile_sizes[] = {1, 2, 4, 8};

int divide_up(int value, int by) { return (value + by - 1) / by; }

exl_status check_output(const Call& call, int i, const Matrix& matrix) {
    const exl_output& output = *matrix.output;
    const bool half = output.dtype == exl_f16, gated = call.activation != exl_no_activation;
    if (gated && i == 1) return exl_ok;  // only its bias is looked at
    EXL_REQUIRE(output.out, exl_bad_argument, Name(i, "output.out"), "found a null pointer");
    EXL_REQUIRE(reinterpret_cast<uintptr_t>(output.out) % 16 == 0, exl_misaligned, Name(i, "output.out"),
                "found address %p, expected a multiple of 16 bytes", output.out);
    EXL_REQUIRE(half || output.dtype == exl_f32, exl_bad_dtype, Name(i, "output.dtype"),
                "found %d, expected f16 or f32", static_cast<int>(output.dtype));
    EXL_REQUIRE(output.stride >= matrix.rows, exl_bad_shape, Name(i, "output.stride"),
                "found %lld, expected at least %d, the rows of the weight", static_cast<long long>(output.stride),
                matrix.rows);
    EXL_REQUIRE(output.add == 0 || output.add == 1, exl_bad_argument, Name(i, "output.add"),
                "found %d, expected 0 or 1", output.add);
    EXL_REQUIRE(!output.add || (!half && !gated), exl_bad_argument, Name(i, "output.add"),
                "found 1, expected 0 for f16 outputs and with an activation");
    return exl_ok;
}

}  // namespace

exl_status check_sizes(const Call& call, const Matrix* matrices) {
    const bool gated = call.activation != exl_no_activation;
    EXL_REQUIRE(call.rows > 0 && call.rows <= largest, exl_bad_shape, "rows", "found %d, expected 1 to %d", call.rows,
                largest);
    EXL_REQUIRE(call.count > 0 && call.count <= exl_max_projections, exl_bad_argument, "num_projections",
                "found %d, expected 1 to %d", call.count, static_cast<int>(exl_max_projections));
    EXL_REQUIRE(call.activation >= exl_no_activation && call.activation <= exl_gelu, exl_bad_argument, "activation",
                "found %d, expected an exl_activation", static_cast<int>(call.activation));
    EXL_REQUIRE(!gated || call.count == 2, exl_bad_argument, "num_projections",
                "found %d, expected 2 with an activation", call.count);
    for (int i = 0; i < call.count; i++) {
        EXL_REQUIRE(matrices[i].rows > 0 && matrices[i].rows <= largest, exl_bad_shape, Name(i, "weight.rows"),
                    "found %d, expected 1 to %d", matrices[i].rows, largest);
        EXL_REQUIRE(matrices[i].cols > 0 && matrices[i].cols <= largest, exl_bad_shape, Name(i, "weight.cols"),
                    "found %d, expected 1 to %d", matrices[i].cols, largest);
        EXL_REQUIRE(matrices[i].cols == matrices[0].cols, exl_bad_shape, Name(i, "weight.cols"),
                    "found %d, expected %d as in the first projection", matrices[i].cols, matrices[0].cols);
        EXL_REQUIRE(!gated || matrices[i].rows == matrices[0].rows, exl_bad_shape, Name(i, "weight.rows"),
                    "found %d, expected %d as in the first projection", matrices[i].rows, matrices[0].rows);
    }
    return exl_ok;
}

exl_status check_memory(const Call& call, const Matrix* matrices, const Shape& shape) {
    const void* x = call.x;
    EXL_REQUIRE_ALIGNED(x, 16);
    EXL_REQUIRE(call.x_stride % 8 == 0, exl_misaligned, "x_stride", "found %lld, expected a multiple of 8 elements",
                static_cast<long long>(call.x_stride));
    EXL_REQUIRE(call.x_stride >= matrices[0].cols, exl_bad_shape, "x_stride",
                "found %lld, expected at least %d, the columns of the weight", static_cast<long long>(call.x_stride),
                matrices[0].cols);
    for (int i = 0; i < call.count; i++) {
        const void* data = matrices[i].data;
        EXL_REQUIRE(data, exl_bad_argument, Name(i, "weight.data"), "found a null pointer");
        EXL_REQUIRE(reinterpret_cast<uintptr_t>(data) % 16 == 0, exl_misaligned, Name(i, "weight.data"),
                    "found address %p, expected a multiple of 16 bytes", data);
        const float* bias = matrices[i].output->bias;
        EXL_REQUIRE(reinterpret_cast<uintptr_t>(bias) % 4 == 0, exl_misaligned, Name(i, "output.bias"),
                    "found address %p, expected a multiple of 4 bytes", static_cast<const void*>(bias));
        EXL_TRY(check_output(call, i, matrices[i]));
    }
    const exl_workspace& workspace = *call.workspace;
    if (shape.partial_bytes) EXL_REQUIRE_ALIGNED(workspace.partials, 16);
    if (shape.num_tickets) EXL_REQUIRE_ALIGNED(workspace.tickets, 4);
    EXL_REQUIRE(workspace.partial_bytes >= shape.partial_bytes, exl_bad_argument, "workspace.partial_bytes",
                "found %lld, expected at least %lld", static_cast<long long>(workspace.partial_bytes),
                static_cast<long long>(shape.partial_bytes));
    EXL_REQUIRE(workspace.num_tickets >= shape.num_tickets, exl_bad_argument, "workspace.num_tickets",
                "found %lld, expected at least %lld", static_cast<long long>(workspace.num_tickets),
                static_cast<long long>(shape.num_tickets));
    return exl_ok;
}

Shape plan(const Call& call, const Matrix* matrices, Problem& problem) {
    const bool gated = call.activation != exl_no_activation;
    Shape shape = {};
    for (int size : token_tile_sizes) {
        if (!(call.token_tiles & size)) continue;
        shape.token_tiles = size;
        if (call.rows <= 8 * size) break;
    }
    problem.rows = call.rows;
    problem.cols = matrices[0].cols;
    problem.steps = divide_up(problem.cols, step_columns);
    problem.num_projections = call.count;
    problem.activation = call.activation;
    int blocks = 0, max_slices = 1;
    for (int i = 0; i < call.count; i++) {
        Projection& projection = problem.projections[i];
        projection.rows = matrices[i].rows;
        projection.tiles = divide_up(matrices[i].rows, tile_rows);
        projection.tile_stride = matrices[i].tile_stride;
        projection.first_block = blocks;
        projection.slice_steps = slice_steps_of(projection.rows, problem.steps);
        projection.slices = divide_up(problem.steps, projection.slice_steps);
        max_slices = std::max(max_slices, projection.slices);
        if (!gated || i == 0) blocks += divide_up(projection.tiles, gated ? tiles_of_block / 2 : tiles_of_block);
    }
    const int token_blocks = divide_up(call.rows, 8 * shape.token_tiles);
    // Enough blocks to fill a large GPU: few rows wait for memory and want many small blocks, many rows want few copies
    // of the partial sums.
    problem.split = max_slices > 1 && blocks * token_blocks < (shape.token_tiles <= 2 ? 512 : 128);
    problem.slots = problem.split ? max_slices : max_slices > 1 ? 1 : 0;
    shape.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(problem.split ? max_slices : 1),
                      static_cast<unsigned>(token_blocks));
    const int64_t values = tiles_of_block * shape.token_tiles * group_size,
                  all = static_cast<int64_t>(blocks) * token_blocks;
    shape.num_tickets = problem.split ? all : 0;
    shape.partial_bytes = all * problem.slots * values * static_cast<int64_t>(sizeof(float4));
    return shape;
}

void bind(const Call& call, const Matrix* matrices, Problem& problem) {
    problem.x_stride = call.x_stride;
    problem.partials = reinterpret_cast<float4*>(call.workspace->partials);
    problem.tickets = call.workspace->tickets;
    for (int i = 0; i < call.count; i++) {
        const exl_output& output = *matrices[i].output;
        Projection& projection = problem.projections[i];
        projection.x = static_cast<const half*>(call.x) + matrices[i].x_offset;
        projection.svh = static_cast<const half*>(matrices[i].svh);
        projection.data = static_cast<const uint8_t*>(matrices[i].data);
        projection.out_f16 = output.dtype == exl_f16 ? static_cast<half*>(output.out) : nullptr;
        projection.out_f32 = output.dtype == exl_f16 ? nullptr : static_cast<float*>(output.out);
        projection.out_stride = output.stride;
        projection.bias = output.bias;
        projection.add = output.add;
    }
}

}  // namespace gemm
}  // namespace exl
