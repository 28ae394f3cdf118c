// Causal attention over paged keys and values, grouped query heads, sliding window, soft-cap.
//
// A task is a tile of rows of one sequence times one kv head: up to 16 query vectors that share every key and value read.
// Each page gives a partial (max, sum, weighted values); partials are merged in page order by `merge`, either at once or,
// when there are too few tasks for the workers, after all pages were done in parallel. Both ways give the same bits.
//
//   scores   fp16 keys: fp32 multiply-adds.   packed keys: the query as 15-bit integers per 32 features (two int8 rows),
//            exact integer dot products with the codes, one multiply-add per 32 features.
//   values   fp16: fp32 multiply-adds.        packed: the scale of the token goes into its probability.
#pragma once

#include "dense.h"
#include "kv_cache.h"
#include "team.h"
#include "unpack.h"

namespace EXL_ISA {

constexpr int max_queries = 16;
constexpr int split_tasks_per_worker = 4;  // fewer tasks than this: pages are shared out too

struct PackedQuery {  // of one 32-feature group
    int8_t high[32], low[32];
    float scale;  // of the 15-bit integer, times 1 / (2 m)
    int32_t sum;  // of the 15-bit integers
};

struct QueryTile {
    int first_row, num_rows, num_queries, kv_head;
    int first_head, num_heads;  // query heads of this task; query q is row q / num_heads, head q % num_heads
    int min_position, max_position;
    float* vectors;  // (num_queries, D), scaled, rotated where keys are packed
    PackedQuery* packed;  // (num_queries, D / 32)
    int32_t positions[max_queries];
};

struct Partial {  // followed by D floats: weighted values
    float peak, sum;
    float* values() { return &sum + 1; }
};

inline int64_t partial_floats(int d) { return (2 + d + 15) / 16 * 16; }

inline void pack_query(const float* x, int key_bits, PackedQuery& out) {
    float peak = 0.0f;
    for (int i = 0; i < 32; ++i) peak = __builtin_fabsf(x[i]) > peak ? __builtin_fabsf(x[i]) : peak;
    const float inverse = peak > 0x1p-100f ? 16256.0f / peak : 0.0f;  // 127 * 128: the high part stays within int8
    out.sum = 0;
    for (int i = 0; i < 32; ++i) {
        const int q = int(__builtin_rintf(x[i] * inverse));
        const int high = (q + 64) >> 7;
        out.high[i] = int8_t(high);
        out.low[i] = int8_t(q - 128 * high);
        out.sum += q;
    }
    out.scale = peak / 16256.0f / float(1 << key_bits);
}

// What will be read next, pulled into the second-level cache while something else is computed: the values of a page
// during its scores, the keys of the next page during its values. A line a step keeps the loads evenly spread.
struct Ahead {
    const uint8_t* next = nullptr;
    const uint8_t* end = nullptr;
    void line() {
        if (next < end) __builtin_prefetch(next, 0, 2);
        next += 64;
    }
};

// 16 scores of `n` queries against one block of 16 tokens.
template <int n> void scores_half(const uint16_t* keys, int d, const float* const* q, float* const* out, Ahead& ahead) {
    f32v even[n], odd[n];
    for (int i = 0; i < n; ++i) even[i] = odd[i] = f_zero();
    for (int f = 0; f < d; f += 2) {
        ahead.line();
        const f32v k0 = f_load_half(keys + 16 * f), k1 = f_load_half(keys + 16 * f + 16);
        for (int i = 0; i < n; ++i) even[i] = f_fma(k0, f_set(q[i][f]), even[i]);
        for (int i = 0; i < n; ++i) odd[i] = f_fma(k1, f_set(q[i][f + 1]), odd[i]);
    }
    for (int i = 0; i < n; ++i) f_store(out[i], f_add(even[i], odd[i]));
}

template <int bits, int n> void scores_packed(const uint8_t* codes, const uint16_t* scales, int groups,
                                              const PackedQuery* const* q, float* const* out, Ahead& ahead) {
    f32v score[n];
    for (int i = 0; i < n; ++i) score[i] = f_zero();
    for (int g = 0; g < groups; ++g) {
        i32v high[n], low[n];
        for (int i = 0; i < n; ++i) high[i] = low[i] = i_zero();
#pragma GCC unroll 8
        for (int c = 0; c < 8; ++c) {
            if (c < bits) ahead.line();
            const i32v u = unpack<bits>(codes + 64 * bits * g, c);
            for (int i = 0; i < n; ++i) {
                int32_t a, b;
                __builtin_memcpy(&a, q[i][g].high + 4 * c, 4);
                __builtin_memcpy(&b, q[i][g].low + 4 * c, 4);
                high[i] = bits == 8 ? dot_u8s8(high[i], u, i_set(a)) : dot_u7s8(high[i], u, i_set(a));
                low[i] = bits == 8 ? dot_u8s8(low[i], u, i_set(b)) : dot_u7s8(low[i], u, i_set(b));
            }
        }
        const f32v scale = f_load_half(scales + 16 * g);
        for (int i = 0; i < n; ++i) {
            // sum q (code - m + 1/2) = (2 dot - (2 m - 1) sum) / 2
            const i32v dot = i_add(i_shl<7>(high[i]), low[i]);
            const i32v centred = i_sub(i_shl<1>(dot), i_set(((1 << bits) - 1) * q[i][g].sum));
            score[i] = f_fma(i_to_f(centred), f_mul(scale, f_set(q[i][g].scale)), score[i]);
        }
    }
    for (int i = 0; i < n; ++i) f_store(out[i], score[i]);
}

// out[i] (16 v features from `f`) = sum over tokens [t0, t1) of p[i][t] * value[t].
template <int n, int v> void weigh_half(const uint16_t* values, int d, int f, int t0, int t1, const float* const* p,
                                        float* const* out, Ahead& ahead) {
    f32v sum[n][v];
    for (int i = 0; i < n; ++i)
        for (int j = 0; j < v; ++j) sum[i][j] = f_zero();
    for (int t = t0; t < t1; ++t) {
        f32v value[v];
        for (int j = t * v % 2; j < v; j += 2) ahead.line();
        for (int j = 0; j < v; ++j) value[j] = f_load_half(values + int64_t(t) * d + f + 16 * j);
        for (int i = 0; i < n; ++i) {
            const f32v weight = f_set(p[i][t]);
            for (int j = 0; j < v; ++j) sum[i][j] = f_fma(value[j], weight, sum[i][j]);
        }
    }
    for (int i = 0; i < n; ++i)
        for (int j = 0; j < v; ++j) f_store(out[i] + f + 16 * j, sum[i][j]);
}

template <int bits, int n>
void weigh_packed(const uint8_t* codes, int g, int t0, int t1, const float* const* p, float* const* out, Ahead& ahead) {
    constexpr float middle = float(1 << (bits - 1)) - 0.5f;
    alignas(64) float table_values[16];
    alignas(64) int32_t lanes[16];
    for (int i = 0; i < 16; ++i) table_values[i] = float(i) - middle, lanes[i] = i;
    const f32v table = f_load(table_values), shift = f_set(-middle);
    const i32v lane = i_load(lanes);
    f32v a[n], b[n];
    for (int i = 0; i < n; ++i) a[i] = b[i] = f_zero();
    const uint8_t* group = codes + int64_t(g) * page_size * 4 * bits;
    for (int t = t0; t < t1; ++t) {
        if (t * bits % 16 < bits) ahead.line();
        f32v x, y;
        if constexpr (bits == 4) {
            const i32v both = i_load_u8(group + 16 * t);
            x = f_lookup16(table, both);
            y = f_lookup16(table, i_shr<4>(both));
        } else {
            i32v cx, cy;
            get_value_codes<bits>(group + int64_t(t) * 4 * bits, lane, cx, cy);
            x = f_add(i_to_f(cx), shift);
            y = f_add(i_to_f(cy), shift);
        }
        for (int i = 0; i < n; ++i) {
            const f32v weight = f_set(p[i][t]);
            a[i] = f_fma(x, weight, a[i]);
            b[i] = f_fma(y, weight, b[i]);
        }
    }
    for (int i = 0; i < n; ++i) {
        f_store(out[i] + 32 * g, a[i]);
        f_store(out[i] + 32 * g + 16, b[i]);
    }
}

// Calls f(Constant<n>, index of the first query) until all queries are served, 4 at a time at most.
template <typename F> inline void by_queries(int count, F f) {
    int done = 0;
    for (; count - done >= 4; done += 4) f(Constant<4>{}, done);
    if (count - done == 3) f(Constant<3>{}, done);
    if (count - done == 2) f(Constant<2>{}, done);
    if (count - done == 1) f(Constant<1>{}, done);
}

template <typename F> inline void by_bits(int bits, F f) {
    switch (bits) {
        case 2: return f(Constant<2>{});
        case 3: return f(Constant<3>{});
        case 4: return f(Constant<4>{});
        case 5: return f(Constant<5>{});
        case 6: return f(Constant<6>{});
        case 7: return f(Constant<7>{});
        default: return f(Constant<8>{});
    }
}

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

    static int64_t bytes(int d) {
        const int64_t query = int64_t(max_queries) * d * 4 + int64_t(max_queries) * (d / 32 + 1) * sizeof(PackedQuery);
        return 2 * max_queries * page_size * 4 + 2 * max_queries * partial_floats(d) * 4 + query + 256;
    }
    AttentionScratch(uint8_t* base, int d) {
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
    const int d = c.head_dim, groups = d / 32;
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(keys + page_layout(c).key_scales);
    for (int block = block0; block < block1; ++block) {
        by_queries(tile.num_queries, [&](auto n, int first) {
            const float* q[n.value];
            const PackedQuery* packed[n.value];
            float* out[n.value];
            for (int i = 0; i < n.value; ++i) {
                q[i] = tile.vectors + int64_t(first + i) * d;
                packed[i] = tile.packed + int64_t(first + i) * groups;
                out[i] = scores + (first + i) * page_size + 16 * block;
            }
            if (c.key_bits == half_bits)
                return scores_half<n.value>(reinterpret_cast<const uint16_t*>(keys) + int64_t(block) * d * 16, d, q,
                                            out, ahead);
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
    const int d = c.head_dim;
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(values + page_layout(c).value_scales);
    const auto pointers = [&](auto n, int first, float* p, const float** from, float** to) {
        for (int i = 0; i < n.value; ++i) {
            from[i] = p + (first + i) * page_size;
            to[i] = at(out, first + i, d)->values();
        }
    };
    if (c.value_bits == half_bits) {
        const uint16_t* half = reinterpret_cast<const uint16_t*>(values);
        by_queries(tile.num_queries, [&](auto n, int first) {
            const float* p[n.value];
            float* to[n.value];
            pointers(n, first, s.scores, p, to);
            int f = 0;
            for (; f + 64 <= d; f += 64) weigh_half<n.value, 4>(half, d, f, t0, t1, p, to, ahead);
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
        by_queries(tile.num_queries, [&](auto n, int first) {
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
        softmax_page(args.softcap, low[q], high[q], block0, block1, s.scores + q * page_size, *at(out, q, c.head_dim));
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
    const int d = c.head_dim, group = args.num_heads / c.num_kv_heads, parts = tasks_per_tile(args) / c.num_kv_heads;
    const int start = part % parts * heads_per_task(args), rest = group - start;
    tile.first_row = first_row, tile.num_rows = num_rows, tile.kv_head = kv_head_of(args, part);
    tile.first_head = tile.kv_head * group + start;
    tile.num_heads = rest < heads_per_task(args) ? rest : heads_per_task(args);
    tile.num_queries = num_rows * tile.num_heads;
    tile.min_position = run.positions[first_row], tile.max_position = run.positions[first_row + num_rows - 1];
    for (int q = 0; q < tile.num_queries; ++q) {
        const int r = first_row + q / tile.num_heads, h = tile.first_head + q % tile.num_heads;
        const float* x = args.q + r * args.q_stride + h * d;
        float* out = tile.vectors + int64_t(q) * d;
        for (int i = 0; i < d; ++i) out[i] = x[i] * args.scale;
        tile.positions[q] = run.positions[r];
        if (c.key_bits == half_bits) continue;
        rotate(out, d);
        for (int g = 0; g < d / 32; ++g) pack_query(out + 32 * g, c.key_bits, tile.packed[int64_t(q) * (d / 32) + g]);
    }
}

inline int first_page(const AttentionArgs& args, const QueryTile& tile) {
    const int oldest = args.window > 0 ? tile.min_position - args.window + 1 : 0;
    return oldest > 0 ? oldest / page_size : 0;
}

inline void close_tile(const AttentionArgs& args, const QueryTile& tile, Partial* state) {
    const LayerCache& c = args.cache;
    const int d = c.head_dim;
    for (int q = 0; q < tile.num_queries; ++q) {
        Partial& p = *at(state, q, d);
        const float inverse = 1.0f / p.sum;
        float* out = args.out + (tile.first_row + q / tile.num_heads) * args.out_stride +
                     (tile.first_head + q % tile.num_heads) * d;
        for (int i = 0; i < d; ++i) out[i] = p.values()[i] * inverse;
        if (c.value_bits != half_bits) rotate(out, d);
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
    const int d = c.head_dim, per_tile = tasks_per_tile(args);
    const int most = max_queries / heads_per_task(args);
    AttentionScratch s(worker.scratch(size_t(AttentionScratch::bytes(d))), d);
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
    // Opens task number `task`: tiles are the outer loop, heads the inner one.
    const auto open = [&](int64_t task) {
        int r = 0;
        for (int64_t i = task / per_tile; i; --i) r = tile_end(run, r, most);
        open_tile(args, run, r, tile_end(run, r, most) - r, int(task % per_tile), s.tile);
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
    return max_split_tasks(workers) * max_pages * max_queries * partial_floats(args.cache.head_dim) * 4;
}

}  // namespace EXL_ISA
