#include "attention/attention.cuh"

namespace {

using namespace exl;

constexpr int max_splits = 65535;

bool any_packed(const exl_kv_cache& cache) { return kv::is_packed(cache.key_bits) || kv::is_packed(cache.value_bits); }

exl_status check_numbers(const exl_attention_args* args, exl_kv_geometry* geometry) {
    EXL_TRY(exl_kv_cache_geometry(&args->cache, geometry));
    EXL_REQUIRE(args->num_heads > 0 && args->num_heads % args->cache.num_kv_heads == 0, exl_bad_shape, "num_heads",
                "found %d, expected a multiple of the %d kv heads", args->num_heads, args->cache.num_kv_heads);
    EXL_REQUIRE(args->splits > 0 && args->splits <= max_splits, exl_bad_argument, "splits",
                "found %d, expected 1 to %d", args->splits, max_splits);
    EXL_REQUIRE(args->rows.count > 0, exl_bad_shape, "rows.count", "found %d, expected at least 1", args->rows.count);
    EXL_REQUIRE(args->rows.pages_per_sequence > 0, exl_bad_shape, "rows.pages_per_sequence",
                "found %d, expected at least 1", args->rows.pages_per_sequence);
    return exl_ok;
}

exl_status check(const exl_attention_args* args, exl_kv_geometry* geometry) {
    EXL_TRY(check_numbers(args, geometry));
    EXL_TRY(kv::check_cache(args->cache));
    EXL_TRY(kv::check_rows(args->rows));
    EXL_REQUIRE_ALIGNED(args->q, 4);
    EXL_REQUIRE_ALIGNED(args->out, 2);
    EXL_REQUIRE(args->q_stride % 2 == 0, exl_misaligned, "q_stride", "found %lld, expected a multiple of 2",
                static_cast<long long>(args->q_stride));
    const int64_t q_width = static_cast<int64_t>(args->num_heads) * geometry->padded_dim;
    const int64_t out_width = static_cast<int64_t>(args->num_heads) * args->cache.head_dim;
    EXL_REQUIRE(args->q_stride >= q_width, exl_bad_shape, "q_stride", "found %lld, expected at least %lld",
                static_cast<long long>(args->q_stride), static_cast<long long>(q_width));
    EXL_REQUIRE(args->out_stride >= out_width, exl_bad_shape, "out_stride", "found %lld, expected at least %lld",
                static_cast<long long>(args->out_stride), static_cast<long long>(out_width));
    EXL_REQUIRE(args->window >= 0, exl_bad_argument, "window", "found %d, expected 0 or more", args->window);
    EXL_REQUIRE(args->softcap >= 0.0f, exl_bad_argument, "softcap", "found %g, expected 0 or more",
                static_cast<double>(args->softcap));
    EXL_REQUIRE(args->out != args->q, exl_bad_argument, "out", "found q itself");
    if (args->splits == 1) return exl_ok;
    EXL_REQUIRE_ALIGNED(args->workspace, 16);
    EXL_REQUIRE_ALIGNED(args->tickets, 4);
    return exl_ok;
}

template <int dim> int tile_bytes(int code_bits) {
    constexpr int rows = attention::tile_tokens(dim);
    switch (code_bits) {
        case 2: return attention::TokenTile<dim, 2>::bytes;
        case 3: return attention::TokenTile<dim, 3>::bytes;
        case 4: return attention::TokenTile<dim, 4>::bytes;
        case 5: return attention::TokenTile<dim, 5>::bytes;
        case 6: return attention::TokenTile<dim, 6>::bytes;
        case 7: return attention::TokenTile<dim, 7>::bytes;
        case 8: return attention::TokenTile<dim, 8>::bytes;
        default: return rows * attention::TokenTile<dim, kv::half_bits>::stride;
    }
}

uint32_t tiles_per_row(const exl_attention_args* args) {
    const int kv_heads = args->cache.num_kv_heads;
    return static_cast<uint32_t>(kv_heads * attention::parts_per_kv_head(args->num_heads / kv_heads));
}

template <int dim, bool packed>
exl_status launch(const exl_attention_args* args, const exl_kv_geometry& geometry, exl_stream stream) {
    int key = tile_bytes<dim>(kv::half_bits), value = key;
    if constexpr (packed) {
        key = tile_bytes<dim>(args->cache.key_bits);
        value = tile_bytes<dim>(args->cache.value_bits);
    }
    const int stage = key > value ? key : value;
    const int records = attention::max_queries * attention::record_floats(dim) * 4;
    const int staged = attention::stages * stage;
    const size_t shared = static_cast<size_t>((staged > records ? staged : records) + attention::weights_bytes);
    const dim3 grid(static_cast<uint32_t>(args->rows.count), tiles_per_row(args), static_cast<uint32_t>(args->splits));
    return EXL_LAUNCH((attention::attend<dim, packed>), grid, attention::threads, shared, stream, *args, geometry,
                      stage);
}

}  // namespace

EXL_API exl_status exl_attention_workspace_size(const exl_attention_args* args, exl_attention_workspace* size) {
    exl_kv_geometry geometry;
    EXL_TRY(check_numbers(args, &geometry));
    *size = {0, 0};
    if (args->splits == 1) return exl_ok;
    const int64_t records = static_cast<int64_t>(args->rows.count) * args->num_heads * args->rows.pages_per_sequence;
    size->workspace_bytes = records * attention::record_floats(geometry.padded_dim) * 4;
    size->ticket_bytes = static_cast<int64_t>(args->rows.count) * tiles_per_row(args) * 4;
    return exl_ok;
}

EXL_API exl_status exl_attention_splits(const exl_attention_args* args, int32_t processors, int32_t* splits) {
    EXL_REQUIRE(processors > 0, exl_bad_argument, "processors", "found %d, expected at least 1", processors);
    exl_attention_args one = *args;
    one.splits = 1;
    exl_kv_geometry geometry;
    EXL_TRY(check_numbers(&one, &geometry));
    constexpr int64_t blocks_per_processor = 4;
    const int64_t blocks = static_cast<int64_t>(args->rows.count) * tiles_per_row(args);
    const int64_t wanted = (blocks_per_processor * processors + blocks - 1) / blocks;
    const int64_t pages = args->rows.pages_per_sequence;
    *splits = static_cast<int32_t>(wanted < pages ? wanted : pages);
    return exl_ok;
}

EXL_API exl_status exl_attention(const exl_attention_args* args, exl_stream stream) {
    exl_kv_geometry geometry;
    EXL_TRY(check(args, &geometry));
    if (any_packed(args->cache)) {
        switch (geometry.padded_dim) {
            case 32: return launch<32, true>(args, geometry, stream);
            case 64: return launch<64, true>(args, geometry, stream);
            case 96: return launch<96, true>(args, geometry, stream);
            case 128: return launch<128, true>(args, geometry, stream);
            default: return launch<256, true>(args, geometry, stream);
        }
    }
    switch (geometry.padded_dim) {
        case 16: return launch<16, false>(args, geometry, stream);
        case 32: return launch<32, false>(args, geometry, stream);
        case 64: return launch<64, false>(args, geometry, stream);
        case 80: return launch<80, false>(args, geometry, stream);
        case 96: return launch<96, false>(args, geometry, stream);
        case 128: return launch<128, false>(args, geometry, stream);
        default: return launch<256, false>(args, geometry, stream);
    }
}
