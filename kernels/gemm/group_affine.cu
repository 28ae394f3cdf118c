// The launcher of products with GroupAffine weights and the table of their formats.
#include "gemm/group_affine.h"

#include "gemm/group_affine_launch.h"
#include "gemm/launch.h"

namespace exl {
namespace gemm {
namespace {

struct Entry {
    int bits;
    exl_scheme scheme;
    exl_status (*launch)(const Problem&, const Shape&, exl_stream);
};
#define EXL_ENTRY(bits, scheme) {bits, scheme, launch_group_affine<bits, scheme>},
const Entry entries[] = {EXL_FLAT_FORMATS(EXL_ENTRY) EXL_SUPER_FORMATS(EXL_ENTRY)};

const Entry* find(const exl_group_affine& weight) {
    for (const Entry& entry : entries)
        if (entry.bits == weight.bits && entry.scheme == weight.scheme) return &entry;
    return nullptr;
}

struct GroupAffineFamily {
    using Args = exl_group_affine_linear_args;
    using Weight = exl_group_affine;
    static constexpr const char* format = "weight.bits";

    static Call call(const Args& args) {
        return {args.x, args.x_stride, args.rows, args.activation, 0, &args.workspace};
    }
    static Matrix matrix(const Args& args, int i) {
        const Weight& weight = args.projections[i].weight;
        const int64_t stride = find(weight) ? layouts::tile_bytes(weight.bits, weight.scheme, weight.cols) : 0;
        return {weight.data, stride, weight.rows, weight.cols, &args.projections[i].output};
    }
    static bool same(const Weight& a, const Weight& b) { return a.bits == b.bits && a.scheme == b.scheme; }

    static exl_status check(const Weight& weight, int i) {
        EXL_REQUIRE(find(weight), exl_bad_dtype, Name(i, "weight.bits"),
                    "found %d bits in scheme %d, which is not compiled", weight.bits, static_cast<int>(weight.scheme));
        const int block = layouts::is_super(weight.scheme) ? 256 : 32;
        EXL_REQUIRE(weight.cols % block == 0, exl_bad_shape, Name(i, "weight.cols"),
                    "found %d, expected a multiple of %d", weight.cols, block);
        return exl_ok;
    }
    static exl_status launch(const Weight& weight, const Problem& problem, const Shape& shape, exl_stream stream) {
        return find(weight)->launch(problem, shape, stream);
    }
};

}  // namespace
}  // namespace gemm
}  // namespace exl

using exl::gemm::GroupAffineFamily;
using exl::gemm::Launcher;

EXL_API exl_status exl_group_affine_linear_workspace(const exl_group_affine_linear_args* args, int64_t* partial_bytes,
                                                     int64_t* num_tickets) {
    return Launcher<GroupAffineFamily>::workspace(args, partial_bytes, num_tickets);
}

EXL_API exl_status exl_group_affine_linear(const exl_group_affine_linear_args* args, exl_stream stream) {
    return Launcher<GroupAffineFamily>::linear(args, stream);
}
