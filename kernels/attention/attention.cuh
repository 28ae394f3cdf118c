#pragma once

#include "attention/merge.cuh"
#include "attention/pipeline.cuh"

namespace exl {
namespace attention {

// Shared memory: the stages of the pipeline, which in the end hold the merged records, then the probabilities of a page.
constexpr int weights_bytes = max_queries * weight_stride * 2;

// The partial of one page, for all vectors of the tile.
template <int dim, bool packed> struct Page {
    Pair peak, sum;
    Outputs<dim> out;

    // seen: tokens of the page that the lane's two vectors see.
    EXL_DEVICE void attend(const exl_attention_args& args, const Queries<dim>& queries, Span span,
                           const Span (&seen)[2], Pipeline<dim, packed>& pipeline, half* weights, Exchange& exchange) {
        constexpr int tokens = tile_tokens(dim), tiles = exl_page_size / tokens;
        const int begin = span.begin / tokens, end = (span.end + tokens - 1) / tokens;
        Scores<dim> scores;
#pragma unroll 1
        for (int tile = 0; tile < tiles; tile++) {
            float c[Scores<dim>::blocks][4] = {};
            if (tile >= begin && tile < end) score_tile<dim, packed>(args.cache.key_bits, pipeline.next(), queries, c);
            scores.push(c);
        }
        peak = soften(args, scores, seen, weights, exchange);
        out.clear();
#pragma unroll 1
        for (int tile = begin; tile < end; tile++) {
            const uint8_t* stage = pipeline.next();
            weigh_tile<dim, packed>(args.cache.value_bits, stage, weights + tile * tokens, span.end - tile * tokens,
                                    out);
        }
        sum = page_sums(exchange);
    }
};

// Grid: (rows, kv heads x parts of their query heads, splits).
template <int dim, bool packed> EXL_KERNEL(threads)
attend(exl_attention_args args, exl_kv_geometry geometry, int stage_bytes) {
    EXL_DYNAMIC_SHARED(uint8_t, memory);
    EXL_SHARED(Exchange, exchange, [1]);
    QueryTile tile;
    if (!open_tile(args, tile)) return;
    half* weights = reinterpret_cast<half*>(memory + stages * stage_bytes);
    Queries<dim> queries;
    queries.load(args, tile, geometry.padded_dim);
    int position[2];
#pragma unroll
    for (int side = 0; side < 2; side++) {
        const int vector = lane() / 4 + 8 * side;
        position[side] = vector < tile.num_vectors() ? args.rows.positions[tile.row(vector)] : -1;
    }
    const int step = static_cast<int>(gridDim.z), start = first_page(tile, args.window) + static_cast<int>(blockIdx.z);
    Pipeline<dim, packed> pipeline(args, geometry, tile, memory, stage_bytes, start, step);
    State<dim> state;
    state.out.clear();
#pragma unroll 1
    for (int number = start; number * exl_page_size <= tile.highest; number += step) {
        const Span span = visible(tile.lowest, tile.highest, args.window, number);
        Span seen[2];
#pragma unroll
        for (int side = 0; side < 2; side++) seen[side] = visible(position[side], position[side], args.window, number);
        Page<dim, packed> page;
        page.attend(args, queries, span, seen, pipeline, weights, exchange[0]);
        if (step == 1)
            state.merge(page.peak, page.sum, page.out);
        else
            write_records(tile, page.peak, page.sum, page.out,
                          [&](int vector) { return partial_of(args, tile, vector, number, dim); });
    }
    copy_async_wait<0>();
    if (step > 1) {
        if (!last_block_arrives(&args.tickets[blockIdx.x * gridDim.y + blockIdx.y], gridDim.z)) return;
        write_outputs<dim>(args, tile,
                           [&](int vector, int feature) { return merge_pages<dim>(args, tile, vector, feature); });
        return;
    }
    __syncthreads();  // all groups have read the last tile, whose memory the records take
    float* records = reinterpret_cast<float*>(memory);
    write_records(tile, state.peak, state.sum, state.out,
                  [&](int vector) { return records + vector * record_floats(dim); });
    __syncthreads();
    write_outputs<dim>(args, tile, [&](int vector, int feature) {
        const float* record = records + vector * record_floats(dim);
        return Merged{record[0], record[1], feature < dim ? record[record_head + feature] : 0.0f};
    });
}

}  // namespace attention
}  // namespace exl
