// One fused stage of a layer: [RMSNorm] -> quantize -> up to four matrices on one input -> [bias] [activation * up] [residual add].
//
//   rows of x --prepare--> records --barrier--> tasks of 16-row weight blocks, any worker --> out columns of that block
//
// Few rows: every worker prepares its own copy of the records, which saves the barrier. Many rows: rows are cut into
// chunks whose records fit the second-level cache; weights are then streamed once per chunk.
#pragma once

#include "amx.h"
#include "dense.h"
#include "epilogue.h"
#include "team.h"
#include "trellis.h"

namespace EXL_ISA {

constexpr int private_rows = 2;  // up to here each worker prepares all rows itself
constexpr int64_t chunk_bytes = 1 << 20;  // of records that a chunk may occupy

constexpr bool use_tiles = EXL_LEVEL >= 4;
constexpr int tile_scales_bytes = 256;

inline ActivationType activation_type(const Weight& w) {
    return w.family == Family::group_affine ? ActivationType::int8 : dense_activations(w.dense_type);
}

inline int blocks_of(const Weight& w) { return (w.rows + 15) / 16; }

// Where things lie in scratch for a run of `rows` rows.
struct LinearLayout {
    int rows, k, chunk;
    bool needs[3];  // by ActivationType
    int64_t offset[3];
    int64_t stride[3];
    int64_t scales_offset;  // TileScales
    int64_t bytes;

    LinearLayout(const LinearArgs& args, int num_rows) : rows(num_rows), needs{}, offset{}, stride{} {
        k = (args.cols + 31) / 32 * 32;
        for (int p = 0; p < args.num_projections; ++p) needs[int(activation_type(*args.projection[p].weight))] = true;
        bytes = 0;
        int64_t widest = 1;
        for (int t = 0; t < 3; ++t) {
            if (!needs[t]) continue;
            stride[t] = record_bytes(ActivationType(t), k);
            offset[t] = bytes;
            bytes += stride[t] * rows;
            widest = stride[t] > widest ? stride[t] : widest;
        }
        scales_offset = bytes;
        if (use_tiles && needs[0]) bytes += int64_t(rows / 16) * (k / 32) * int64_t(tile_scales_bytes);
        const int64_t fit = chunk_bytes / widest / 64 * 64;
        chunk = int(fit < 64 ? 64 : fit);
    }

    Rows rows_of(ActivationType type, uint8_t* base) const { return {base + offset[int(type)], stride[int(type)], k}; }
};

// What a worker needs for itself: a line of floats, an unpacked panel, two results of a chunk, and records where they are
// not shared.
struct WorkerLayout {
    int64_t line, panel, result, one_result, records, bytes;

    WorkerLayout(const LinearArgs& args, const LinearLayout& layout, bool own_records) {
        const int chunk = layout.chunk < layout.rows ? layout.chunk : layout.rows;
        line = 0;
        panel = line + int64_t(layout.k + 16) * 4 / 64 * 64 + 64;
        result = panel;
#if EXL_LEVEL >= 4
        for (int p = 0; p < args.num_projections; ++p) {
            const int64_t end = panel + panel_bytes(*args.projection[p].weight, layout.k);
            result = end > result ? end : result;
        }
#else
        (void)args;
#endif
        one_result = int64_t(chunk) * 64;
        records = result + 2 * one_result;
        bytes = records + (own_records ? layout.bytes : 0);
    }
};

inline const float* input_row(const LinearArgs& args, int r) {
    return args.x + int64_t(args.row_index ? args.row_index[r] : r) * args.x_stride;
}

inline void prepare_records(const LinearArgs& args, const LinearLayout& layout, uint8_t* base, int r, float* line) {
    for (int t = 0; t < 3; ++t)
        if (layout.needs[t])
            prepare_row(args, input_row(args, r), ActivationType(t), layout.rows_of(ActivationType(t), base), r, line);
}

// One block of 16 weight rows times records [first, first + count).
inline void multiply(const Weight& w, int block_index, const Rows& rows, int first, int count, const uint8_t* scales,
                     uint8_t* panel, Worker& worker, float* y) {
    const uint8_t* block = w.data + w.block_bytes * block_index;
    (void)scales, (void)panel, (void)worker;
    if (w.family == Family::group_affine) {
        dispatch_group_affine(w, [&](auto bits, auto scheme) {
#if EXL_LEVEL >= 4
            tile_multiply<bits.value, scheme.value>(w, block, rows, first, count,
                                                    reinterpret_cast<const TileScales*>(scales), panel, worker, y);
#else
            block_multiply<bits.value, scheme.value, 1>(w, &block, rows, first, count, &y);
#endif
        });
    } else if (w.dense_type == DenseType::f32) {
        dense_multiply<DenseType::f32>(w, block, rows, first, count, y);
    } else if (w.dense_type == DenseType::f16) {
        dense_multiply<DenseType::f16>(w, block, rows, first, count, y);
    } else {
#if EXL_LEVEL >= 4
        dense_tile_multiply(block, rows, first, count, worker, y);
#else
        dense_multiply<DenseType::bf16>(w, block, rows, first, count, y);
#endif
    }
}

inline bool same_format(const Weight& a, const Weight& b) {
    return a.family == b.family && a.bits == b.bits && a.scheme == b.scheme;
}

// A view of what one worker uses while it runs a stage.
struct LinearStage {
    const LinearArgs& args;
    const LinearLayout& layout;
    uint8_t* records;
    uint8_t* own;
    const WorkerLayout& mine;
    Worker& worker;

    float* result(int i) const { return reinterpret_cast<float*>(own + mine.result + i * mine.one_result); }

    // Rows [r0, r1) of one block into y.
    void block(const Weight& w, int index, int r0, int r1, float* y) const {
        const Rows rows = layout.rows_of(activation_type(w), records);
        multiply(w, index, rows, r0, r1 - r0, records + layout.scales_offset, own + mine.panel, worker, y);
    }

    f32v with_bias(const float* y, const float* bias) const {
        return bias ? f_add(f_load(y), f_load(bias)) : f_load(y);
    }

    // Writes 16 columns (fewer in the last block) of rows [r0, r1).
    void write(const Projection& p, int index, int r0, int r1, const float* y, const float* up,
               const float* up_bias) const {
        const int column = 16 * index, width = p.weight->rows - column < 16 ? p.weight->rows - column : 16;
        float bias[16] = {}, bias2[16] = {}, line[16];
        for (int i = 0; i < width; ++i) {
            if (p.bias) bias[i] = p.bias[column + i];
            if (up_bias) bias2[i] = up_bias[column + i];
        }
        for (int r = r0; r < r1; ++r) {
            f32v v = with_bias(y + 16 * (r - r0), p.bias ? bias : nullptr);
            if (up) v = f_mul(activate(v, args.activation), with_bias(up + 16 * (r - r0), up_bias ? bias2 : nullptr));
            if (args.softcap > 0) v = f_mul(f_tanh(f_div(v, f_set(args.softcap))), f_set(args.softcap));
            float* out = p.out + r * p.out_stride + column;
            if (width == 16) {
                f_store(out, p.add ? f_add(f_load(out), v) : v);
                continue;
            }
            f_store(line, v);
            for (int i = 0; i < width; ++i) out[i] = p.add ? out[i] + line[i] : line[i];
        }
    }

    // Two blocks into result(0) and result(1).
    void pair(const Weight& a, int index_a, const Weight& b, int index_b, int r0, int r1) const {
#if EXL_LEVEL >= 4
        if (activation_type(a) == ActivationType::bf16 && activation_type(b) == ActivationType::bf16)
            return dense_tile_multiply_pair(a.data + a.block_bytes * index_a, b.data + b.block_bytes * index_b,
                                            layout.rows_of(ActivationType::bf16, records), r0, r1 - r0, worker,
                                            result(0), result(1));
#endif
        if (a.family == Family::group_affine && same_format(a, b) && (!use_tiles || r1 - r0 < 16)) {
            const uint8_t* const blocks[2] = {a.data + a.block_bytes * index_a, b.data + b.block_bytes * index_b};
            float* const y[2] = {result(0), result(1)};
            return dispatch_group_affine(a, [&](auto bits, auto scheme) {
                block_multiply<bits.value, scheme.value, 2>(a, blocks, layout.rows_of(ActivationType::int8, records),
                                                            r0, r1 - r0, y);
            });
        }
        block(a, index_a, r0, r1, result(0));
        block(b, index_b, r0, r1, result(1));
    }

    // `count` blocks from `index`, 1 or 2; of gated projections always 1.
    void item(int projection, int index, int count, int r0, int r1) const {
        const Projection& p = args.projection[projection];
        if (args.activation != Activation::none) {
            const Projection& up = args.projection[1];
            pair(*p.weight, index, *up.weight, index, r0, r1);
            return write(p, index, r0, r1, result(0), result(1), up.bias);
        }
        if (count == 2)
            pair(*p.weight, index, *p.weight, index + 1, r0, r1);
        else
            block(*p.weight, index, r0, r1, result(0));
        for (int i = 0; i < count; ++i) write(p, index + i, r0, r1, result(i), nullptr, nullptr);
    }
};

// Where part i of `total` blocks begins: half of the blocks make one part for each worker, half of the rest the next parts,
// and so on down to pairs. Parts are long, so that weights are read in one go, and all workers end at nearly the same time.
inline int64_t part_start(int64_t i, int64_t total, int workers) {
    const int64_t round = i / workers, left = round < 62 ? total >> round : 0;
    const int64_t start = total - left + (left - left / 2) * (i % workers) / workers;
    return left == 0 ? total : start & ~int64_t(1);
}

// Hands out (chunk of rows, projection, blocks) to the workers.
inline void run_tasks(const LinearStage& stage) {
    const LinearArgs& args = stage.args;
    const int outputs = args.activation == Activation::none ? args.num_projections : 1;
    int64_t total = 0;
    for (int p = 0; p < outputs; ++p) total += blocks_of(*args.projection[p].weight);
    const int rows = stage.layout.rows, chunk = stage.layout.chunk, chunks = (rows + chunk - 1) / chunk;
    const int workers = stage.worker.count();
    stage.worker.begin_stage();
    for (int64_t part = stage.worker.next(), next; (next = part_start(part, total * chunks, workers)) < total * chunks;
         part = stage.worker.next()) {
        const int64_t end = part_start(part + 1, total * chunks, workers);
        for (int64_t i = next, count; i < end; i += count) {
            int64_t index = i % total;
            int p = 0;
            while (index >= blocks_of(*args.projection[p].weight)) index -= blocks_of(*args.projection[p++].weight);
            const int r0 = int(i / total) * chunk, r1 = r0 + chunk < rows ? r0 + chunk : rows;
            const bool two =
                outputs == args.num_projections && i + 1 < end && index + 1 < blocks_of(*args.projection[p].weight);
            count = two ? 2 : 1;
            stage.item(p, int(index), int(count), r0, r1);
        }
    }
}

// Tiles want the scales of 16 records side by side.
inline void share_scales(const LinearLayout& layout, uint8_t* records, Worker& worker) {
    (void)layout, (void)records, (void)worker;
#if EXL_LEVEL >= 4
    if (!layout.needs[int(ActivationType::int8)] || layout.rows < 16) return;
    const Rows rows = layout.rows_of(ActivationType::int8, records);
    TileScales* scales = reinterpret_cast<TileScales*>(records + layout.scales_offset);
    worker.begin_stage();
    for (int64_t t; (t = worker.next()) < layout.rows / 16;)
        transpose_scales(rows, int(t) * 16, scales + t * (layout.k / 32));
    worker.barrier();
#endif
}

inline void grouped_linear(const LinearArgs& args, const Run& run, Worker& worker) {
    if (run.rows == 0) return;
    const LinearLayout layout(args, run.rows);
    const bool own_records = run.rows <= private_rows;
    const WorkerLayout mine(args, layout, own_records);
    uint8_t* own = worker.scratch(size_t(mine.bytes));
    uint8_t* records = own_records ? own + mine.records : run.shared;
    float* line = reinterpret_cast<float*>(own + mine.line);
    if (own_records) {
        for (int r = 0; r < run.rows; ++r) prepare_records(args, layout, records, r, line);
    } else {
        worker.begin_stage();
        for (int64_t r; (r = worker.next()) < run.rows;) prepare_records(args, layout, records, int(r), line);
        worker.barrier();
        share_scales(layout, records, worker);
    }
    run_tasks({args, layout, records, own, mine, worker});
}

// The projections that are trellises, or those that are not.
inline LinearArgs only(const LinearArgs& args, bool trellises) {
    LinearArgs part = args;
    part.num_projections = 0;
    for (int p = 0; p < args.num_projections; ++p)
        if ((args.projection[p].weight->family == Family::trellis) == trellises)
            part.projection[part.num_projections++] = args.projection[p];
    return part;
}

// Trellises want an input of their own, so a mixed stage runs in two parts. Gate and up are always of one kind.
void linear(const LinearArgs& args, const Run& run, Worker& worker) {
    const LinearArgs grouped = only(args, false), trellises = only(args, true);
    if (grouped.num_projections) grouped_linear(grouped, run, worker);
    if (grouped.num_projections && trellises.num_projections) worker.barrier();
    if (trellises.num_projections) trellis_linear(trellises, run, worker);
}

int64_t linear_scratch(const LinearArgs& args, int32_t max_rows) {
    const LinearArgs grouped = only(args, false), trellises = only(args, true);
    const int64_t a = grouped.num_projections ? LinearLayout(grouped, max_rows).bytes : 0;
    const int64_t b = trellises.num_projections ? trellis_scratch(trellises, max_rows) : 0;
    return a > b ? a : b;
}

}  // namespace EXL_ISA
