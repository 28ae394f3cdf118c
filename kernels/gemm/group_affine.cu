// The launcher of products with GroupAffine weights: the table of formats, checks, one launch for each format.
#include "gemm/group_affine.h"

#include <cstdio>

#include "gemm/group_affine_launch.h"

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

bool same_format(const exl_group_affine& a, const exl_group_affine& b) {
    return a.bits == b.bits && a.scheme == b.scheme;
}

// Projections of one format, in the order of the arguments.
struct Batch {
    Call call;
    Matrix matrices[exl_max_projections];
    const Entry* entry;
};

// The batches of a call; returns their number.
int collect(const exl_group_affine_linear_args& args, Batch (&batches)[exl_max_projections]) {
    bool taken[exl_max_projections] = {};
    int count = 0;
    for (int first = 0; first < args.num_projections; first++) {
        if (taken[first]) continue;
        Batch& batch = batches[count++];
        batch.call = {args.x, args.x_stride, args.rows, args.activation, 0, &args.workspace};
        batch.entry = find(args.projections[first].weight);
        for (int i = first; i < args.num_projections; i++) {
            const exl_group_affine_projection& projection = args.projections[i];
            const exl_group_affine& weight = projection.weight;
            if (!same_format(weight, args.projections[first].weight)) continue;
            taken[i] = true;
            const int64_t stride = layouts::tile_bytes(weight.bits, weight.scheme, weight.cols);
            batch.matrices[batch.call.count++] = {weight.data, stride, weight.rows, weight.cols, &projection.output};
        }
    }
    return count;
}

// All projections together: names in messages count as in the arguments.
exl_status check_weights(const exl_group_affine_linear_args& args, Call& call, Matrix* matrices) {
    call = {args.x, args.x_stride, args.rows, args.activation, args.num_projections, &args.workspace};
    for (int i = 0; i < args.num_projections && i < exl_max_projections; i++) {
        const exl_group_affine& weight = args.projections[i].weight;
        matrices[i] = {weight.data, 0, weight.rows, weight.cols, &args.projections[i].output};
    }
    EXL_TRY(check_sizes(call, matrices));
    for (int i = 0; i < args.num_projections; i++) {
        const exl_group_affine& weight = args.projections[i].weight;
        char name[64];
        std::snprintf(name, sizeof name, "projections[%d].weight.bits", i);
        EXL_REQUIRE(find(weight), exl_bad_dtype, name, "found %d bits in scheme %d, which is not compiled", weight.bits,
                    static_cast<int>(weight.scheme));
        EXL_REQUIRE(args.activation == exl_no_activation || same_format(weight, args.projections[0].weight),
                    exl_bad_dtype, name, "found another format than in the first projection, expected one for both");
        const int block = layouts::is_super(weight.scheme) ? 256 : 32;
        std::snprintf(name, sizeof name, "projections[%d].weight.cols", i);
        EXL_REQUIRE(weight.cols % block == 0, exl_bad_shape, name, "found %d, expected a multiple of %d", weight.cols,
                    block);
    }
    return exl_ok;
}

}  // namespace
}  // namespace gemm
}  // namespace exl

using namespace exl::gemm;

EXL_API exl_status exl_group_affine_linear_workspace(const exl_group_affine_linear_args* args, int64_t* partial_bytes,
                                                     int64_t* num_tickets) {
    EXL_REQUIRE(args && partial_bytes && num_tickets, exl_bad_argument, "args", "found a null pointer");
    Call call;
    Matrix matrices[exl_max_projections];
    EXL_TRY(check_weights(*args, call, matrices));
    *partial_bytes = *num_tickets = 0;
    Batch batches[exl_max_projections] = {};
    for (int i = 0, count = collect(*args, batches); i < count; i++) {
        Problem problem = {};
        const Shape shape = plan(batches[i].call, batches[i].matrices, problem);
        if (shape.partial_bytes > *partial_bytes) *partial_bytes = shape.partial_bytes;
        if (shape.num_tickets > *num_tickets) *num_tickets = shape.num_tickets;
    }
    return exl_ok;
}

EXL_API exl_status exl_group_affine_linear(const exl_group_affine_linear_args* args, exl_stream stream) {
    EXL_REQUIRE(args, exl_bad_argument, "args", "found a null pointer");
    Call call;
    Matrix matrices[exl_max_projections];
    EXL_TRY(check_weights(*args, call, matrices));
    Shape all = {};
    EXL_TRY(exl_group_affine_linear_workspace(args, &all.partial_bytes, &all.num_tickets));
    EXL_TRY(check_memory(call, matrices, all));
    Batch batches[exl_max_projections] = {};
    for (int i = 0, count = collect(*args, batches); i < count; i++) {
        Problem problem = {};
        const Shape shape = plan(batches[i].call, batches[i].matrices, problem);
        bind(batches[i].call, batches[i].matrices, problem);
        EXL_TRY(batches[i].entry->launch(problem, shape, stream));
    }
    return exl_ok;
}
