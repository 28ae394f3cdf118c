// Partial results of pages, merged in page order: in registers, or through the workspace.
#pragma once

#include "attention/values.cuh"
#include "cache/rotation.cuh"
#include "exl/ticket.h"

namespace exl {
namespace attention {

// How a state of (peak, sum) takes in a partial: both sides' values are multiplied by these. A page of which a vector
// sees nothing has sum 0 and changes nothing.
struct Merge {
    float keep, add;

    EXL_DEVICE static Merge of(float& peak, float& sum, float page_peak, float page_sum) {
        if (page_sum == 0.0f) return {1.0f, 0.0f};
        if (sum == 0.0f) {
            peak = page_peak;
            sum = page_sum;
            return {0.0f, 1.0f};
        }
        const float best = fmaxf(peak, page_peak);
        const Merge merge = {exp2_fast(peak - best), exp2_fast(page_peak - best)};
        peak = best;
        sum = fused_multiply_add(sum, merge.keep, page_sum * merge.add);
        return merge;
    }
    EXL_DEVICE float value(float state, float page) const { return fused_multiply_add(state, keep, page * add); }
};

// The state of the two vectors of a lane over the pages so far.
template <int dim> struct State {
    Pair peak = {{0.0f, 0.0f}}, sum = {{0.0f, 0.0f}};
    Outputs<dim> out;

    EXL_DEVICE void merge(const Pair& page_peak, const Pair& page_sum, const Outputs<dim>& page) {
#pragma unroll
        for (int side = 0; side < 2; side++) {
            const Merge m = Merge::of(peak.of[side], sum.of[side], page_peak.of[side], page_sum.of[side]);
#pragma unroll
            for (int i = 0; i < Columns<dim>::count; i++)
#pragma unroll
                for (int j = 2 * side; j < 2 * side + 2; j++) out.o[i][j] = m.value(out.o[i][j], page.o[i][j]);
        }
    }
};

// A result of one vector: peak, sum, 2 floats unused, then dim values.
constexpr int record_head = 4;
EXL_HOST_DEVICE constexpr int record_floats(int dim) { return record_head + dim; }

// Where the partial of a vector and a page stands in the workspace: [row][head][page].
EXL_DEVICE float* partial_of(const exl_attention_args& args, const QueryTile& tile, int vector, int page, int dim) {
    const int64_t index = static_cast<int64_t>(tile.row(vector)) * args.num_heads + tile.head(vector);
    return static_cast<float*>(args.workspace) + (index * args.rows.pages_per_sequence + page) * record_floats(dim);
}

// Writes what the lanes hold; record(vector) is where to.
template <int dim, class Record> EXL_DEVICE void write_records(const QueryTile& tile, const Pair& peak, const Pair& sum,
                                                               const Outputs<dim>& out, Record record) {
    const int g = lane() / 4, t = lane() % 4, first = Columns<dim>::first();
#pragma unroll
    for (int side = 0; side < 2; side++) {
        const int vector = g + 8 * side;
        if (vector >= tile.num_vectors()) continue;
        float* to = record(vector);
        if (group() == 0 && t == 0) *reinterpret_cast<float2*>(to) = make_float2(peak.of[side], sum.of[side]);
#pragma unroll
        for (int i = 0; i < Columns<dim>::count; i++)
            if (Columns<dim>::owns(first + i))
                *reinterpret_cast<float2*>(to + record_head + (first + i) * 8 + 2 * t) =
                    make_float2(out.o[i][2 * side], out.o[i][2 * side + 1]);
    }
}

// One feature of a vector after all pages.
struct Merged {
    float peak, sum, value;
};

// Finishes all vectors of the tile: a group of lanes takes 32 features of a vector; merged(vector, feature) gives them.
template <int dim, class Source>
EXL_DEVICE void write_outputs(const exl_attention_args& args, const QueryTile& tile, Source merged) {
    constexpr float log2_e = 1.4426950408889634f;
    constexpr int parts = (dim + group_size - 1) / group_size;
    const int head_dim = args.cache.head_dim;
    for (int item = group(); item < tile.num_vectors() * parts; item += num_groups) {
        const int vector = item / parts, feature = item % parts * group_size + lane();
        Merged m = merged(vector, feature);
        if (args.sinks) {
            const Merge sink = Merge::of(m.peak, m.sum, args.sinks[tile.head(vector)] * log2_e, 1.0f);
            m.value *= sink.keep;
        }
        float value = m.value * (1.0f / m.sum);
        if (kv::is_packed(args.cache.value_bits)) value = kv::rotate32(value);
        half* out = static_cast<half*>(args.out) + tile.row(vector) * args.out_stride;
        if (feature < head_dim) out[static_cast<int64_t>(tile.head(vector)) * head_dim + feature] = to_half(value);
    }
}

// One feature of a vector, from the partials of all its pages.
template <int dim>
EXL_DEVICE Merged merge_pages(const exl_attention_args& args, const QueryTile& tile, int vector, int feature) {
    const int last = tile.highest / exl_page_size;
    Merged m = {0.0f, 0.0f, 0.0f};
#pragma unroll 4
    for (int page = first_page(tile, args.window); page <= last; page++) {
        const float* record = partial_of(args, tile, vector, page, dim);
        const float peak = load_coherent(record), sum = load_coherent(record + 1);
        const float value = feature < dim ? load_coherent(record + record_head + feature) : 0.0f;
        m.value = Merge::of(m.peak, m.sum, peak, sum).value(m.value, value);
    }
    return m;
}

}  // namespace attention
}  // namespace exl
