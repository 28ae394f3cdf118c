// Launchers of embedding and expansion: the table of formats and checks.
#include "gemm/embedding.h"

#include "exl/math.h"
#include "gemm/group_affine_launch.h"
#include "gemm/group_affine_rows.cuh"

namespace exl {
namespace gemm {
namespace {

template <class T> EXL_KERNEL(row_threads)
embed_dense_rows(const T* data, int64_t stride, int rows, int cols, exl_embed_args args) {
    const int id = args.ids[blockIdx.x];
    const bool valid = id >= 0 && id < rows;
    const T* row = data + (valid ? id : 0) * stride;
    const float factor = valid ? args.multiplier : bit_cast<float>(0x7fc00000u);  // NaN
    float* out = args.out + blockIdx.x * args.out_stride;
    for (int column = static_cast<int>(threadIdx.x); column < cols; column += row_threads)
        out[column] = factor * to_float(row[column]);
}

// Blocks along K of an expansion, so that a matrix gives enough of them.
unsigned column_blocks(int cols) {
    const int steps = (cols + step_columns - 1) / step_columns, per_block = row_threads / group_size * 4;
    return static_cast<unsigned>((steps + per_block - 1) / per_block);
}

struct Entry {
    int bits;
    exl_scheme scheme;
    exl_status (*embed)(const exl_group_affine&, const exl_embed_args&, exl_stream);
    exl_status (*expand)(const exl_group_affine&, const exl_expand_args&, exl_stream);
};

template <int bits, int scheme>
exl_status launch_embed(const exl_group_affine& table, const exl_embed_args& args, exl_stream stream) {
    return EXL_LAUNCH((embed_rows<bits, scheme>), static_cast<unsigned>(args.rows), row_threads, 0, stream,
                      static_cast<const uint8_t*>(table.data), layouts::tile_bytes(bits, scheme, table.cols),
                      table.rows, table.cols, args);
}
template <int bits, int scheme>
exl_status launch_expand(const exl_group_affine& weight, const exl_expand_args& args, exl_stream stream) {
    const dim3 grid(static_cast<unsigned>((weight.rows + tile_rows - 1) / tile_rows), column_blocks(weight.cols));
    return EXL_LAUNCH((expand_tiles<bits, scheme>), grid, row_threads, 0, stream,
                      static_cast<const uint8_t*>(weight.data), layouts::tile_bytes(bits, scheme, weight.cols),
                      weight.rows, weight.cols, args);
}

#define EXL_ENTRY(bits, scheme) {bits, scheme, launch_embed<bits, scheme>, launch_expand<bits, scheme>},
const Entry entries[] = {EXL_FLAT_FORMATS(EXL_ENTRY) EXL_SUPER_FORMATS(EXL_ENTRY)};

exl_status find(const exl_group_affine* table, const Entry** found) {
    EXL_REQUIRE(table, exl_bad_argument, "table", "found a null pointer");
    *found = nullptr;
    for (const Entry& entry : entries)
        if (entry.bits == table->bits && entry.scheme == table->scheme) *found = &entry;
    EXL_REQUIRE(*found, exl_bad_dtype, "bits", "found %d bits in scheme %d, which is not compiled", table->bits,
                static_cast<int>(table->scheme));
    const int block = layouts::is_super(table->scheme) ? 256 : 32;
    EXL_REQUIRE(table->rows > 0, exl_bad_shape, "rows", "found %d, expected at least 1", table->rows);
    EXL_REQUIRE(table->cols > 0 && table->cols % block == 0, exl_bad_shape, "cols",
                "found %d, expected a multiple of %d", table->cols, block);
    EXL_REQUIRE(table->data, exl_bad_argument, "data", "found a null pointer");
    EXL_REQUIRE(reinterpret_cast<uintptr_t>(table->data) % 16 == 0, exl_misaligned, "data",
                "found address %p, expected a multiple of 16 bytes", table->data);
    return exl_ok;
}

exl_status check_embed(const exl_embed_args* args, int cols) {
    EXL_REQUIRE(args, exl_bad_argument, "args", "found a null pointer");
    EXL_REQUIRE(args->rows > 0, exl_bad_shape, "rows", "found %d, expected at least 1", args->rows);
    EXL_REQUIRE_ALIGNED(args->ids, 4);
    EXL_REQUIRE_ALIGNED(args->out, 16);
    EXL_REQUIRE(args->out_stride % 4 == 0, exl_misaligned, "out_stride",
                "found %lld, expected a multiple of 4 elements", static_cast<long long>(args->out_stride));
    EXL_REQUIRE(args->out_stride >= cols, exl_bad_shape, "out_stride", "found %lld, expected at least %d",
                static_cast<long long>(args->out_stride), cols);
    return exl_ok;
}

template <class T> exl_status launch_dense(const exl_dense& table, const exl_embed_args& args, exl_stream stream) {
    return EXL_LAUNCH(embed_dense_rows<T>, static_cast<unsigned>(args.rows), row_threads, 0, stream,
                      static_cast<const T*>(table.data), table.stride, table.rows, table.cols, args);
}

}  // namespace
}  // namespace gemm
}  // namespace exl

using namespace exl::gemm;

EXL_API exl_status exl_group_affine_embed(const exl_group_affine* table, const exl_embed_args* args,
                                          exl_stream stream) {
    const Entry* entry;
    EXL_TRY(find(table, &entry));
    EXL_TRY(check_embed(args, table->cols));
    return entry->embed(*table, *args, stream);
}

EXL_API exl_status exl_group_affine_expand(const exl_group_affine* weight, const exl_expand_args* args,
                                           exl_stream stream) {
    const Entry* entry;
    EXL_TRY(find(weight, &entry));
    EXL_REQUIRE(args, exl_bad_argument, "args", "found a null pointer");
    EXL_REQUIRE_ALIGNED(args->out, 16);
    EXL_REQUIRE(args->out_stride % 8 == 0, exl_misaligned, "out_stride",
                "found %lld, expected a multiple of 8 elements", static_cast<long long>(args->out_stride));
    EXL_REQUIRE(args->out_stride >= weight->cols, exl_bad_shape, "out_stride", "found %lld, expected at least %d",
                static_cast<long long>(args->out_stride), weight->cols);
    return entry->expand(*weight, *args, stream);
}

EXL_API exl_status exl_dense_embed(const exl_dense* table, const exl_embed_args* args, exl_stream stream) {
    EXL_REQUIRE(table, exl_bad_argument, "table", "found a null pointer");
    EXL_REQUIRE(table->rows > 0, exl_bad_shape, "rows", "found %d, expected at least 1", table->rows);
    EXL_REQUIRE(table->cols > 0, exl_bad_shape, "cols", "found %d, expected at least 1", table->cols);
    EXL_REQUIRE(table->stride >= table->cols, exl_bad_shape, "stride", "found %lld, expected at least %d",
                static_cast<long long>(table->stride), table->cols);
    EXL_TRY(check_embed(args, table->cols));
    const uintptr_t size = table->dtype == exl_f32 ? 4 : 2;
    EXL_REQUIRE(table->data, exl_bad_argument, "data", "found a null pointer");
    EXL_REQUIRE(reinterpret_cast<uintptr_t>(table->data) % size == 0, exl_misaligned, "data",
                "found address %p, expected a multiple of %d bytes", table->data, static_cast<int>(size));
    switch (table->dtype) {
        case exl_f32: return launch_dense<float>(*table, *args, stream);
        case exl_f16: return launch_dense<exl::half>(*table, *args, stream);
        case exl_bf16: return launch_dense<exl::bfloat16>(*table, *args, stream);
    }
    return exl::refuse(exl_bad_dtype, "dtype", "found %d, expected f32, f16 or bf16", static_cast<int>(table->dtype));
}
