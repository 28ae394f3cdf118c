#include "rope/rope.cuh"

namespace {

using namespace exl;

exl_status check_stride(int64_t stride, int64_t width, const char* name) {
    EXL_REQUIRE(stride >= width, exl_bad_shape, name, "found %lld, expected at least %lld",
                static_cast<long long>(stride), static_cast<long long>(width));
    return exl_ok;
}

exl_status check(const exl_rope_and_store_args* args, int32_t padded_dim) {
    const exl_kv_cache& cache = args->cache;
    EXL_TRY(kv::check_rows(args->rows));
    EXL_REQUIRE(args->num_heads > 0 && args->num_heads % cache.num_kv_heads == 0, exl_bad_shape, "num_heads",
                "found %d, expected a multiple of the %d kv heads", args->num_heads, cache.num_kv_heads);
    EXL_REQUIRE_ALIGNED(args->q, 2);
    EXL_REQUIRE_ALIGNED(args->k, 2);
    EXL_REQUIRE_ALIGNED(args->v, 2);
    EXL_REQUIRE_ALIGNED(args->q_out, 2);
    EXL_REQUIRE(args->q_out != args->q || (padded_dim == cache.head_dim && args->q_stride == args->q_out_stride),
                exl_bad_argument, "q_out", "found q itself, but heads of %d become heads of %d", cache.head_dim,
                padded_dim);
    EXL_TRY(check_stride(args->q_stride, static_cast<int64_t>(args->num_heads) * cache.head_dim, "q_stride"));
    EXL_TRY(check_stride(args->q_out_stride, static_cast<int64_t>(args->num_heads) * padded_dim, "q_out_stride"));
    EXL_TRY(check_stride(args->k_stride, static_cast<int64_t>(cache.num_kv_heads) * cache.head_dim, "k_stride"));
    EXL_TRY(check_stride(args->v_stride, static_cast<int64_t>(cache.num_kv_heads) * cache.head_dim, "v_stride"));
    EXL_REQUIRE_ALIGNED(args->faults, 4);
    EXL_REQUIRE(args->layer >= 0, exl_bad_argument, "layer", "found %d, expected 0 or more", args->layer);
    if (!args->table) return exl_ok;
    EXL_REQUIRE_ALIGNED(args->table, 4);
    EXL_REQUIRE(args->rotary_dim > 0 && args->rotary_dim % 2 == 0 && args->rotary_dim <= cache.head_dim, exl_bad_shape,
                "rotary_dim", "found %d, expected an even number up to head_dim %d", args->rotary_dim, cache.head_dim);
    return exl_ok;
}

template <int per_lane>
exl_status launch(const exl_rope_and_store_args* args, const exl_kv_geometry& geometry, exl_stream stream) {
    const int heads = args->num_heads + 2 * args->cache.num_kv_heads;
    const dim3 grid(static_cast<uint32_t>(args->rows.count),
                    static_cast<uint32_t>((heads + rope::groups_per_block - 1) / rope::groups_per_block));
    return EXL_LAUNCH(rope::rope_and_store<per_lane>, grid, rope::threads, 0, stream, *args, geometry);
}

}  // namespace

EXL_API exl_status exl_rope_table(const exl_rope_table_args* args, exl_stream stream) {
    EXL_REQUIRE(args->rows > 0, exl_bad_shape, "rows", "found %d, expected at least 1", args->rows);
    EXL_REQUIRE(args->rotary_dim > 0 && args->rotary_dim % 2 == 0, exl_bad_shape, "rotary_dim",
                "found %d, expected an even number above 0", args->rotary_dim);
    EXL_REQUIRE_ALIGNED(args->positions, 4);
    EXL_REQUIRE_ALIGNED(args->inv_freq, 4);
    EXL_REQUIRE_ALIGNED(args->table, 4);
    const int blocks = (args->rotary_dim / 2 + rope::threads - 1) / rope::threads;
    const dim3 grid(static_cast<uint32_t>(args->rows), static_cast<uint32_t>(blocks));
    return EXL_LAUNCH(rope::fill_table, grid, rope::threads, 0, stream, *args);
}

EXL_API exl_status exl_rope_and_store(const exl_rope_and_store_args* args, exl_stream stream) {
    exl_kv_geometry geometry;
    EXL_TRY(kv::check_cache(args->cache));
    EXL_TRY(exl_kv_cache_geometry(&args->cache, &geometry));
    EXL_TRY(check(args, geometry.padded_dim));
    switch ((geometry.padded_dim + group_size - 1) / group_size) {
        case 1: return launch<1>(args, geometry, stream);
        case 2: return launch<2>(args, geometry, stream);
        case 3: return launch<3>(args, geometry, stream);
        case 4: return launch<4>(args, geometry, stream);
        default: return launch<8>(args, geometry, stream);
    }
}
