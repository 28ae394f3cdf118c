#include "cache/cache.h"

#include "layouts/kv_page.h"

namespace exl {
namespace {

constexpr int threads = 256;

EXL_KERNEL(threads) copy_pages(exl_copy_pages_args args) {
    const int32_t* pair = args.pairs + 2 * blockIdx.y;
    const int64_t words = args.page_bytes / 16;
    const uint4* from = static_cast<const uint4*>(args.pages) + pair[0] * words;
    uint4* to = static_cast<uint4*>(args.pages) + pair[1] * words;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; i < words; i += gridDim.x * threads)
        to[i] = from[i];
}

exl_status check_bits(int32_t bits, const char* name) {
    EXL_REQUIRE(bits == kv::half_bits || (bits >= 2 && bits <= 8), exl_bad_dtype, name,
                "found %d bits, expected 2 to 8 or 16", bits);
    return exl_ok;
}

exl_status check_numbers(const exl_kv_cache& cache) {
    EXL_REQUIRE(cache.num_kv_heads > 0, exl_bad_shape, "num_kv_heads", "found %d, expected at least 1",
                cache.num_kv_heads);
    EXL_TRY(check_bits(cache.key_bits, "key_bits"));
    EXL_TRY(check_bits(cache.value_bits, "value_bits"));
    const bool packed = kv::is_packed(cache.key_bits) || kv::is_packed(cache.value_bits);
    for (const int dim : {16, 32, 64, 80, 96, 128, 256})
        if (cache.head_dim == dim && !(packed && dim == 16)) return exl_ok;
    return refuse(exl_bad_shape, "head_dim", "found %d, expected %s32, 64, 80, 96, 128 or 256", cache.head_dim,
                  packed ? "" : "16, ");
}

}  // namespace

namespace kv {

exl_status check_cache(const exl_kv_cache& cache) {
    EXL_TRY(check_numbers(cache));
    EXL_REQUIRE_ALIGNED(cache.keys, 16);
    EXL_REQUIRE_ALIGNED(cache.values, 16);
    return exl_ok;
}

exl_status check_rows(const exl_rows& rows) {
    EXL_REQUIRE(rows.count > 0, exl_bad_shape, "rows.count", "found %d, expected at least 1", rows.count);
    EXL_REQUIRE(rows.pages_per_sequence > 0, exl_bad_shape, "rows.pages_per_sequence", "found %d, expected at least 1",
                rows.pages_per_sequence);
    EXL_REQUIRE_ALIGNED(rows.positions, 4);
    EXL_REQUIRE_ALIGNED(rows.sequences, 4);
    EXL_REQUIRE_ALIGNED(rows.page_table, 4);
    return exl_ok;
}

}  // namespace kv
}  // namespace exl

EXL_API exl_status exl_kv_cache_geometry(const exl_kv_cache* cache, exl_kv_geometry* geometry) {
    using namespace exl;
    EXL_TRY(check_numbers(*cache));
    const int dim = kv::padded_dim(cache->head_dim, kv::is_packed(cache->key_bits) || kv::is_packed(cache->value_bits));
    *geometry = {dim, kv::page_bytes(dim, cache->key_bits, cache->num_kv_heads),
                 kv::page_bytes(dim, cache->value_bits, cache->num_kv_heads)};
    return exl_ok;
}

EXL_API exl_status exl_copy_pages(const exl_copy_pages_args* args, exl_stream stream) {
    EXL_REQUIRE(args->num_pairs > 0 && args->num_pairs <= 65535, exl_bad_shape, "num_pairs",
                "found %d, expected 1 to 65535", args->num_pairs);
    EXL_REQUIRE(args->page_bytes > 0 && args->page_bytes % 16 == 0, exl_bad_shape, "page_bytes",
                "found %lld, expected a multiple of 16", static_cast<long long>(args->page_bytes));
    EXL_REQUIRE_ALIGNED(args->pages, 16);
    EXL_REQUIRE_ALIGNED(args->pairs, 4);
    const int64_t blocks = (args->page_bytes / 16 + exl::threads - 1) / exl::threads;
    const dim3 grid(static_cast<uint32_t>(blocks < 64 ? blocks : 64), static_cast<uint32_t>(args->num_pairs));
    return EXL_LAUNCH(exl::copy_pages, grid, exl::threads, 0, stream, *args);
}
