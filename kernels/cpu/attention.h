// Causal attention over paged keys and values, grouped query heads, sliding window, soft-cap.
//
// A task is a tile of rows of one sequence times one kv head: up to 16 query vectors that share every key and value read.
// Each page gives a partial (max, sum, weighted values); partials are merged in page order by `merge`, either at once or,
// when there are too few tasks for the workers, after all pages were done in parallel. Both ways give the same bits.
#pragma once

#include "attention_blocks.h"
#include "team.h"

namespace EXL_ISA {

constexpr int max_queries = 16;
constexpr int split_tasks_per_worker = 4;  // fewer tasks than this: pages are shared out too

struct QueryTile {
    int first_row, num_rows, num_queries, kv_head;
    int first_head, num_heads;  // query heads of this task; query q is row q / num_heads, head q % num_heads
    int min_position, max_position;
    float* vectors;  // (num_queries, padded_dim), scaled; padded with zeros and rotated where keys are packed
    PackedQuery* packed;  // (num_queries, padded_dim / 32)
    int32_t positions[max_queries];
};

struct Partial {  // followed by d = padded_dim floats: weighted values
    float peak, sum;
    float* values() { return &sum + 1; }
};

inline int64_t partial_floats(int d) { return (2 + d + 15) / 16 * 16; }

// Tokens of page `page` that a query at `position` sees: [low, high) inside the page.
inline void visible(const AttentionArgs& args, int position, int page, int& low, int& high) {
    const int start = page * page_size, oldest = args.window > 0 ? position - args.window + 1 : 0;
    high = position + 1 - start < page_size ? position + 1 - start : page_size;
    low = oldest > start ? oldest - start : 0;
    if (high <= low) low = high = 0;
}

// What a worker needs for one task.
struct AttentionScratch {
    float *scores, *scaled;  // (max_queries, 256) each
    Partial *partial, *state;
    QueryTile tile;

    static int64_t bytes(const LayerCache& c) {
        const int d = padded_dim(c);
        const int64_t query = int64_t(d) * 4 + (d / 32 + 1) * sizeof(PackedQuery);
        return max_queries * (2 * page_size * 4 + 2 * partial_floats(d) * 4 + query) + 256;
    }
    AttentionScratch(uint8_t* base, const LayerCache& c) {
        const int d = padded_dim(c);
        scores = reinterpret_cast<float*>(base);
        scaled = scores + max_queries * page_size;
        float* p = scaled + max_queries * page_size;
        partial = reinterpret_cast<Partial*>(p);
        state = reinterpret_cast<Partial*>(p + max_queries * partial_floats(d));
        tile.vectors = p + 2 * max_queries * partial_floats(d);
        tile.packed = reinterpret_cast<PackedQuery*>(tile.vectors + int64_t(max_queries) * d);
    }
};

inline Partial* at(Partial* first, int i, int d) {
    return reinterpret_cast<Partial*>(reinterpret_cast<float*>(first) + i * partial_floats(d));
}

inline void score_page(const AttentionArgs& args, const QueryTile& tile, const uint8_t* keys, int block0, int block1,
                       float* scores, Ahead ahead) {
    const LayerCache& c = args.cache;
    const int d = padded_dim(c), groups = d / 32;
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(keys + page_layout(c).key_scales);
    for (int block = block0; block < block1; ++block) {
        const auto out_of = [&](int query) { return scores + query * page_size + 16 * block; };
        if (c.key_bits == half_bits) {
            by_queries<half_queries>(tile.num_queries, [&](auto n, int first) {
                const float* q[n.value];
                float* out[n.value];
                for (int i = 0; i < n.value; ++i) {
                    q[i] = tile.vectors + int64_t(first + i) * d;
                    out[i] = out_of(first + i);
                }
                scores_half<n.value>(reinterpret_cast<const uint16_t*>(keys) + int64_t(block) * d * 16, d, q, out,
                                     ahead);
            });
            continue;
        }
        by_queries<packed_queries>(tile.num_queries, [&](auto n, int first) {
            const PackedQuery* packed[n.value];
            float* out[n.value];
            for (int i = 0; i < n.value; ++i) {
                packed[i] = tile.packed + int64_t(first + i) * groups;
                out[i] = out_of(first + i);
            }
            by_bits(c.key_bits, [&](auto bits) {
                scores_packed<bits.value, n.value>(keys + int64_t(block) * groups * 64 * bits.value,
                                                   scales + block * groups * 16, groups, packed, out, ahead);
            });
        });
    }
}

// Scores of one query become probabilities relative to the page's peak; invisible tokens become 0.
inline void softmax_page(float softcap, int low, int high, int block0, int block1, float* scores, Partial& out) {
    const f32v minus_infinity = f_set(-__builtin_inff());
    f32v peak = minus_infinity;
    const auto visible_lanes = [&](int block) {
        return uint16_t(lanes_below(high - 16 * block) & ~lanes_below(low - 16 * block));
    };
    for (int block = block0; block < block1; ++block) {
        f32v s = f_load(scores + 16 * block);
        if (softcap > 0) s = f_mul(f_tanh(f_div(s, f_set(softcap))), f_set(softcap));
        s = f_select(visible_lanes(block), s, minus_infinity);
        f_store(scores + 16 * block, s);
        peak = f_max(peak, s);
    }
    out.peak = f_max_lane(peak);
    const f32v top = f_set(out.peak);
    f32v sum = f_zero();
    for (int block = block0; block < block1; ++block) {
        const f32v e = f_exp(f_sub(f_load(scores + 16 * block), top));
        const f32v p = f_select(visible_lanes(block), e, f_zero());
        f_store(scores + 16 * block, p);
        sum = f_add(sum, p);
    }
    out.sum = f_sum(sum);
}

inline void weigh_page(const AttentionArgs& args, const QueryTile& tile, const uint8_t* values, int t0, int t1,
                       AttentionScratch& s, Partial* out, Ahead ahead) {
    const LayerCache& c = args.cache;
    const int d = padded_dim(c);
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(values + page_layout(c).value_scales);
    const auto pointers = [&](auto n, int first, float* p, const float** from, float** to) {
        for (int i = 0; i < n.value; ++i) {
            from[i] = p + (first + i) * page_size;
            to[i] = at(out, first + i, d)->values();
        }
    };
    if (c.value_bits == half_bits) {
        const uint16_t* half = reinterpret_cast<const uint16_t*>(values);
        by_queries<half_queries>(tile.num_queries, [&](auto n, int first) {
            constexpr int wide = n.value > 4 ? 2 : 4;
            const float* p[n.value];
            float* to[n.value];
            pointers(n, first, s.scores, p, to);
            int f = 0;
            for (; f + 16 * wide <= d; f += 16 * wide) weigh_half<n.value, wide>(half, d, f, t0, t1, p, to, ahead);
            for (; f + 16 <= d; f += 16) weigh_half<n.value, 1>(half, d, f, t0, t1, p, to, ahead);
        });
        return;
    }
    for (int g = 0; g < d / 32; ++g) {
        const f32v inverse = f_set(1.0f / float(1 << (c.value_bits - 1)));
        for (int q = 0; q < tile.num_queries; ++q)
            for (int t = t0 / 16 * 16; t < t1; t += 16) {
                const f32v scale = f_mul(f_load_half(scales + page_size * g + t), inverse);
                f_store(s.scaled + q * page_size + t, f_mul(f_load(s.scores + q * page_size + t), scale));
            }
        by_queries<packed_queries>(tile.num_queries, [&](auto n, int first) {
            const float* p[n.value];
            float* to[n.value];
            pointers(n, first, s.scaled, p, to);
            by_bits(c.value_bits,
                    [&](auto bits) { weigh_packed<bits.value, n.value>(values, g, t0, t1, p, to, ahead); });
        });
    }
}

// Page number `page_index` of the tile's sequence.
inline int64_t page_of(const Run& run, const QueryTile& tile, int page_index) {
    return run.page_table[int64_t(run.sequences[tile.first_row]) * run.pages_per_sequence + page_index];
}

// The keys of a page that the tile's sequence will need next; nothing when the page is out of its range.
inline Ahead keys_ahead(const AttentionArgs& args, const Run& run, const QueryTile& tile, int page_index, int kv_head) {
    if (page_index > tile.max_position / page_size) return {};
    const int64_t bytes = page_layout(args.cache).key_head;
    const uint8_t* keys =
        args.cache.keys + page_of(run, tile, page_index) * args.cache.key_page_bytes + kv_head * bytes;
    return {keys, keys + bytes};
}

// The partial of every query of the tile for one page. ahead: what to fetch meanwhile.
inline void attend_page(const AttentionArgs& args, const Run& run, int page_index, AttentionScratch& s, Partial* out,
                        Ahead ahead) {
    const LayerCache& c = args.cache;
    const QueryTile& tile = s.tile;
    const int64_t page = page_of(run, tile, page_index);
    const PageLayout layout = page_layout(c);
    int low[max_queries], high[max_queries], t0 = page_size, t1 = 0;
    for (int q = 0; q < tile.num_queries; ++q) {
        visible(args, tile.positions[q], page_index, low[q], high[q]);
        if (low[q] == high[q]) continue;
        t0 = low[q] < t0 ? low[q] : t0;
        t1 = high[q] > t1 ? high[q] : t1;
    }
    if (t1 <= t0) t0 = t1 = 0;
    const int block0 = t0 / 16, block1 = (t1 + 15) / 16;
    const uint8_t* keys = c.keys + page * c.key_page_bytes + tile.kv_head * layout.key_head;
    const uint8_t* values = c.values + page * c.value_page_bytes + tile.kv_head * layout.value_head;
    score_page(args, tile, keys, block0, block1, s.scores, {values, values + layout.value_head});
    for (int q = 0; q < tile.num_queries; ++q)
        softmax_page(args.softcap, low[q], high[q], block0, block1, s.scores + q * page_size,
                     *at(out, q, padded_dim(c)));
    weigh_page(args, tile, values, t0, t1, s, out, ahead);
}

// state <- state + partial; a page in which a query sees nothing has sum 0 and changes nothing.
inline void merge(Partial& state, Partial& partial, int d) {
    if (partial.sum == 0.0f) return;
    if (state.sum == 0.0f) {
        __builtin_memcpy(&state, &partial, size_t(2 + d) * 4);
        return;
    }
    const float peak = state.peak > partial.peak ? state.peak : partial.peak;
    const f32v a = f_exp(f_set(state.peak - peak)), b = f_exp(f_set(partial.peak - peak));
    float lane[16], other[16];
    f_store(lane, a);
    f_store(other, b);
    state.sum = state.sum * lane[0] + partial.sum * other[0];
    state.peak = peak;
    for (int i = 0; i < d; i += 16)
        f_store(state.values() + i, f_fma(f_load(state.values() + i), a, f_mul(f_load(partial.values() + i), b)));
}

// Query heads of one kv head, in parts of at most max_queries.
inline int heads_per_task(const AttentionArgs& args) {
    const int group = args.num_heads / args.cache.num_kv_heads;
    return group < max_queries ? group : max_queries;
}
inline int tasks_per_tile(const AttentionArgs& args) {
    const int group = args.num_heads / args.cache.num_kv_heads, part = heads_per_task(args);
    return args.cache.num_kv_heads * ((group + part - 1) / part);
}

// `part` counts the tasks of a tile of rows: kv heads, then parts of their query heads.
inline int kv_head_of(const AttentionArgs& args, int part) {
    return part / (tasks_per_tile(args) / args.cache.num_kv_heads);
}

inline void open_tile(const AttentionArgs& args, const Run& run, int first_row, int num_rows, int part,
                      QueryTile& tile) {
    const LayerCache& c = args.cache;
    const int d = c.head_dim, width = padded_dim(c), group = args.num_heads / c.num_kv_heads;
    const int parts = tasks_per_tile(args) / c.num_kv_heads;
    const int start = part % parts * heads_per_task(args), rest = group - start;
    tile.first_row = first_row, tile.num_rows = num_rows, tile.kv_head = kv_head_of(args, part);
    tile.first_head = tile.kv_head * group + start;
    tile.num_heads = rest < heads_per_task(args) ? rest : heads_per_task(args);
    tile.num_queries = num_rows * tile.num_heads;
    tile.min_position = run.positions[first_row], tile.max_position = run.positions[first_row + num_rows - 1];
    for (int q = 0; q < tile.num_queries; ++q) {
        const int r = first_row + q / tile.num_heads, h = tile.first_head + q % tile.num_heads;
        const float* x = args.q + r * args.q_stride + h * d;
        float* out = tile.vectors + int64_t(q) * width;
        for (int i = 0; i < d; ++i) out[i] = x[i] * args.scale;
        for (int i = d; i < width; ++i) out[i] = 0.0f;
        tile.positions[q] = run.positions[r];
        if (c.key_bits == half_bits) continue;
        rotate(out, width);
        PackedQuery* packed = tile.packed + int64_t(q) * (width / 32);
        for (int g = 0; g < width / 32; ++g) pack_query(out + 32 * g, c.key_bits, packed[g]);
    }
}

inline int first_page(const AttentionArgs& args, const QueryTile& tile) {
    const int oldest = args.window > 0 ? tile.min_position - args.window + 1 : 0;
    return oldest > 0 ? oldest / page_size : 0;
}

inline void close_tile(const AttentionArgs& args, const QueryTile& tile, Partial* state) {
    const LayerCache& c = args.cache;
    const int d = c.head_dim, width = padded_dim(c);
    for (int q = 0; q < tile.num_queries; ++q) {
        Partial& p = *at(state, q, width);
        float* const values = p.values();
        const float inverse = 1.0f / p.sum;
        for (int i = 0; i < width; ++i) values[i] *= inverse;
        if (c.value_bits != half_bits) rotate(values, width);
        float* out = args.out + (tile.first_row + q / tile.num_heads) * args.out_stride +
                     (tile.first_head + q % tile.num_heads) * d;
        __builtin_memcpy(out, values, size_t(d) * 4);
    }
}

inline void reset(Partial* state, int queries, int d) {
    for (int q = 0; q < queries; ++q) at(state, q, d)->sum = 0.0f;
}

// End of the tile that starts at row `first`: at most `most` rows of one sequence.
inline int tile_end(const Run& run, int first, int most) {
    int end = first + 1;
    while (end < run.rows && end - first < most && run.sequences[end] == run.sequences[first]) ++end;
    return end;
}

inline int64_t max_split_tasks(int workers) { return split_tasks_per_worker * int64_t(workers); }

void attention(const AttentionArgs& args, const Run& run, Worker& worker) {
    const LayerCache& c = args.cache;
    const int d = padded_dim(c), per_tile = tasks_per_tile(args);
    const int most = max_queries / heads_per_task(args);
    AttentionScratch s(worker.scratch(size_t(AttentionScratch::bytes(c))), c);
    int tiles = 0, pages = 0;
    for (int r = 0; r < run.rows; ++tiles) {
        const int end = tile_end(run, r, most), last = run.positions[end - 1] / page_size + 1;
        pages = last > pages ? last : pages;
        r = end;
    }
    const int64_t tasks = int64_t(tiles) * per_tile;
    const bool split = pages > 1 && tasks < max_split_tasks(worker.count()) && worker.count() > 1;
    Partial* const shared = reinterpret_cast<Partial*>(run.shared);
    const int64_t slots = int64_t(max_queries) * partial_floats(d);
    const auto partial_of = [&](int64_t task, int page) {
        return reinterpret_cast<Partial*>(reinterpret_cast<float*>(shared) + (task * pages + page) * slots);
    };
    // Opens task number `task`: tiles are the outer loop, heads the inner one. Tasks come in ascending order.
    int64_t tile = 0;
    int row = 0;
    const auto open = [&](int64_t task) {
        for (; tile < task / per_tile; ++tile) row = tile_end(run, row, most);
        open_tile(args, run, row, tile_end(run, row, most) - row, int(task % per_tile), s.tile);
    };
    if (!split) {
        worker.begin_stage();
        for (int64_t task; (task = worker.next()) < tasks;) {
            open(task);
            reset(s.state, s.tile.num_queries, d);
            for (int page = first_page(args, s.tile); page <= s.tile.max_position / page_size; ++page) {
                attend_page(args, run, page, s, s.partial, keys_ahead(args, run, s.tile, page + 1, s.tile.kv_head));
                for (int q = 0; q < s.tile.num_queries; ++q) merge(*at(s.state, q, d), *at(s.partial, q, d), d);
            }
            close_tile(args, s.tile, s.state);
        }
        return;
    }
    worker.begin_stage();
    int64_t opened = -1;
    for (int64_t item = worker.next(), following; item < tasks * pages; item = following) {
        following = worker.next();
        const int64_t task = item / pages, next_task = following / pages;
        const int page = int(item % pages);
        if (task != opened) open(opened = task);
        if (page < first_page(args, s.tile) || page > s.tile.max_position / page_size) continue;
        Ahead ahead;
        if (task / per_tile == next_task / per_tile)  // the same sequence
            ahead = keys_ahead(args, run, s.tile, int(following % pages), kv_head_of(args, int(next_task % per_tile)));
        attend_page(args, run, page, s, partial_of(task, page), ahead);
    }
    worker.barrier();
    tile = row = 0;
    worker.begin_stage();
    for (int64_t task; (task = worker.next()) < tasks;) {
        open(task);
        reset(s.state, s.tile.num_queries, d);
        for (int page = first_page(args, s.tile); page <= s.tile.max_position / page_size; ++page)
            for (int q = 0; q < s.tile.num_queries; ++q)
                merge(*at(s.state, q, d), *at(partial_of(task, page), q, d), d);
        close_tile(args, s.tile, s.state);
    }
}

int64_t attention_scratch(const AttentionArgs& args, int32_t max_pages, int32_t workers) {
    return max_split_tasks(workers) * max_pages * max_queries * partial_floats(padded_dim(args.cache)) * 4;
}

}  // namespace EXL_ISA
