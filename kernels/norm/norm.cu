#include "norm/norm.cuh"

namespace {

constexpr int max_width = 32768;

exl_status check_rotations(const exl_norm_args* args) {
    constexpr int block = exl::hadamard_size;
    EXL_REQUIRE(args->num_rotations >= 0 && args->num_rotations <= exl_max_rotations, exl_bad_argument, "num_rotations",
                "found %d, expected 0 to %d", args->num_rotations, static_cast<int>(exl_max_rotations));
    if (!args->num_rotations) return exl_ok;
    const int padded = (args->width + block - 1) / block * block;
    EXL_REQUIRE(args->out_stride >= padded, exl_bad_shape, "out_stride", "found %lld, expected at least %d",
                static_cast<long long>(args->out_stride), padded);
    EXL_REQUIRE(args->out_step % 4 == 0, exl_misaligned, "out_step", "found %lld, expected a multiple of 4",
                static_cast<long long>(args->out_step));
    for (int i = 0; i < args->num_rotations; i++) EXL_REQUIRE_ALIGNED(args->suh[i], 8);
    return exl_ok;
}

exl_status check(const exl_norm_args* args) {
    EXL_REQUIRE(args->rows > 0, exl_bad_shape, "rows", "found %d, expected at least 1", args->rows);
    EXL_REQUIRE(args->width > 0 && args->width % 4 == 0 && args->width <= max_width, exl_bad_shape, "width",
                "found %d, expected a multiple of 4 up to %d", args->width, max_width);
    EXL_REQUIRE_ALIGNED(args->x, 16);
    EXL_REQUIRE_ALIGNED(args->weight, 16);
    EXL_REQUIRE_ALIGNED(args->out, 8);
    EXL_REQUIRE(args->x_stride >= args->width && args->x_stride % 4 == 0, exl_misaligned, "x_stride",
                "found %lld, expected a multiple of 4 from %d on", static_cast<long long>(args->x_stride), args->width);
    EXL_REQUIRE(args->out_stride >= args->width && args->out_stride % 4 == 0, exl_misaligned, "out_stride",
                "found %lld, expected a multiple of 4 from %d on", static_cast<long long>(args->out_stride),
                args->width);
    EXL_TRY(check_rotations(args));
    if (!args->delta) return exl_ok;
    EXL_REQUIRE_ALIGNED(args->delta, 8);
    EXL_REQUIRE(args->delta_stride >= args->width && args->delta_stride % 4 == 0, exl_misaligned, "delta_stride",
                "found %lld, expected a multiple of 4 from %d on", static_cast<long long>(args->delta_stride),
                args->width);
    EXL_REQUIRE(!args->row_index, exl_bad_argument, "row_index", "found with delta, expected one of the two");
    return exl_ok;
}

template <int quads> exl_status launch(const exl_norm_args* args, exl_stream stream) {
    const uint32_t rows = static_cast<uint32_t>(args->rows);
    if (args->num_rotations)
        return EXL_LAUNCH((exl::norm::normalize<quads, true>), rows, exl::norm::threads, 0, stream, *args);
    return EXL_LAUNCH((exl::norm::normalize<quads, false>), rows, exl::norm::threads, 0, stream, *args);
}

}  // namespace

EXL_API exl_status exl_norm(const exl_norm_args* args, exl_stream stream) {
    EXL_TRY(check(args));
    const int quads = (args->width / 4 + exl::norm::threads - 1) / exl::norm::threads;
    if (quads <= 1) return launch<1>(args, stream);
    if (quads <= 2) return launch<2>(args, stream);
    if (quads <= 4) return launch<4>(args, stream);
    if (quads <= 8) return launch<8>(args, stream);
    if (quads <= 16) return launch<16>(args, stream);
    return launch<32>(args, stream);
}
