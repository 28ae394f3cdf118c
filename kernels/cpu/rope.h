// [q/k norm] -> rotary embedding -> k and v into their cache pages; one task per row.
//
// Half-split pairs (i, i + rotary_dim / 2). The angle is float32(position) * inv_freq, as the models were trained with.
#pragma once

#include <cmath>

#include "kv_cache.h"
#include "team.h"

namespace EXL_ISA {

void rope_table(const RopeTableArgs& args, const Run& run, Worker& worker) {
    const int half = args.rotary_dim / 2;
    worker.begin_stage();
    for (int64_t r; (r = worker.next()) < run.rows;) {
        float* out = args.table + r * args.rotary_dim;
        const float position = float(run.positions[r]);
        for (int i = 0; i < half; ++i) {
            const double angle = double(position * args.inv_freq[i]);
            out[i] = float(std::cos(angle)) * args.scale;
            out[half + i] = float(std::sin(angle)) * args.scale;
        }
    }
}

inline void rotate_pairs(float* x, const float* table, int rotary_dim) {
    const int half = rotary_dim / 2;
    const float *cos = table, *sin = table + half;
    int i = 0;
    for (; i + 16 <= half; i += 16) {
        const f32v a = f_load(x + i), b = f_load(x + half + i), c = f_load(cos + i), s = f_load(sin + i);
        f_store(x + i, f_sub(f_mul(a, c), f_mul(b, s)));
        f_store(x + half + i, f_add(f_mul(b, c), f_mul(a, s)));
    }
    for (; i < half; ++i) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cos[i] - b * sin[i];
        x[half + i] = b * cos[i] + a * sin[i];
    }
}

inline void prepare_head(float* x, const RopeArgs& args, const float* norm, float eps, const float* table) {
    const int d = args.cache.head_dim;
    if (norm) normalize_row(x, norm, eps, d, d, x);
    if (table) rotate_pairs(x, table, args.rotary_dim);
}

// head_dim features, then zeros up to the width that the cache stores.
inline void pad_head(const float* x, int d, int width, float* line) {
    __builtin_memcpy(line, x, size_t(d) * 4);
    __builtin_memset(line + d, 0, size_t(width - d) * 4);
}

void rope_and_store(const RopeArgs& args, const Run& run, Worker& worker) {
    const LayerCache& cache = args.cache;
    const PageLayout layout = page_layout(cache);
    const int d = cache.head_dim, width = padded_dim(cache);
    float* line = reinterpret_cast<float*>(worker.scratch(size_t(width) * 4));
    worker.begin_stage();
    for (int64_t r; (r = worker.next()) < run.rows;) {
        const float* table = args.table ? args.table + r * args.rotary_dim : nullptr;
        const int position = run.positions[r], t = position % page_size;
        const int64_t page = run.page_table[int64_t(run.sequences[r]) * run.pages_per_sequence + position / page_size];
        for (int h = 0; h < args.num_heads; ++h)
            prepare_head(args.q + r * args.q_stride + h * d, args, args.q_norm, args.q_eps, table);
        bool held = true;
        for (int h = 0; h < cache.num_kv_heads; ++h) {
            float* k = args.k + r * args.k_stride + h * d;
            prepare_head(k, args, args.k_norm, args.k_eps, table);
            pad_head(k, d, width, line);
            held &= store_key(cache, cache.keys + page * cache.key_page_bytes + h * layout.key_head, t, line);
            pad_head(args.v + r * args.v_stride + h * d, d, width, line);
            held &= store_value(cache, cache.values + page * cache.value_page_bytes + h * layout.value_head, t, line);
        }
        if (!held && run.faults[r] < 0) run.faults[r] = args.layer;
    }
}

}  // namespace EXL_ISA
