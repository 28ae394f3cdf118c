// One position of a trellis search, compiled once per instruction-set level; trellis_search.h has the recurrence.
#include "trellis_step.h"

#include <utility>

#include "simd.h"
#include "trellis_lanes.h"

namespace EXL_ISA {

namespace {

using exl::cpu::search_tiles;

// From k = 5 on all 32 states of a vector read the same number, which a broadcast of 32 bits takes without a shuffle.
template <int k> struct Input {
    const uint16_t* p;
    Input(const uint16_t* in, uint16_t*) : p(in) {}
    u16v states_from(int state) const { return w_spread<k>(p + (state >> k)); }
};
template <int k>
    requires(k >= 5)
struct Input<k> {
    const uint16_t* p;
    Input(const uint16_t* in, uint16_t* twice) : p(twice) {
        for (int i = 0; i < 65536 >> k; ++i) twice[2 * i] = twice[2 * i + 1] = in[i];
    }
    u16v states_from(int state) const { return w_spread<k>(p + 2 * (state >> k)); }
};

template <int k> inline u16v cost(u16v values, u16v target) {
    u16v d = w_difference(values, target);
    for (int i = 5; i < k; ++i) d = w_double(d);
    return w_square(d);
}

template <int k_in, int k_out> void step(TrellisStep& args) {
    const auto all = [&]<int... t>(std::integer_sequence<int, t...>) {
        alignas(64) uint16_t twice[search_tiles][k_in >= 5 ? 131072 >> k_in : 1];
        const Input<k_in> in[] = {Input<k_in>(args.in[t], twice[t])...};
        const u16v target[] = {w_set(uint16_t(args.target[t]))...};
        const u16v base[] = {w_set(args.low[t])...};
        const u16v dear = w_set(exl::cpu::trellis_dear);
        u16v low[] = {((void)t, dear)...};
        const int16_t* table = args.table;
        for (int first = 0; first < 65536 >> k_out; first += lanes) {
            u16v best[] = {((void)t, w_set(0xffff))...};
            for (int h = 0; h < 1 << k_out; ++h, table += lanes) {
                const u16v values = w_load(table);
                const int state = h << (16 - k_out) | first;
                ((best[t] = w_min(best[t], w_add(in[t].states_from(state), cost<k_in>(values, target[t])))), ...);
            }
            ((best[t] = w_min(w_sub(best[t], base[t]), dear), low[t] = w_min(low[t], best[t]),
              w_store(args.out[t] + first, w_natural<k_in>(best[t]))),
             ...);
        }
        ((args.low[t] = w_lowest(low[t])), ...);
    };
    all(std::make_integer_sequence<int, search_tiles>{});
}

}  // namespace

void trellis_step(int32_t k_in, int32_t k_out, TrellisStep& args) {
    const auto whole = [&]<int... k>(std::integer_sequence<int, k...>) {
        ((k_in == k + 1 && k_out == k + 1 ? step<k + 1, k + 1>(args) : void()), ...);
    };
    const auto half = [&]<int... k>(std::integer_sequence<int, k...>) {
        ((k_in == k + 1 && k_out == k + 2 ? step<k + 1, k + 2>(args) : void()), ...);
        ((k_in == k + 2 && k_out == k + 1 ? step<k + 2, k + 1>(args) : void()), ...);
    };
    whole(std::make_integer_sequence<int, 8>{});
    half(std::make_integer_sequence<int, 3>{});
}

// Products are rounded before they are added, so that levels with and without FMA give the same bits.
void trellis_targets(const float* feedback, int64_t stride, const float* errors, int64_t rows, float* targets) {
    f32v sum[16];
    for (int r = 0; r < 16; ++r) sum[r] = f_load(targets + 16 * r);
    for (int64_t j = 0; j < rows; ++j) {
        const f32v error = f_load(errors + 16 * j);
        for (int r = 0; r < 16; ++r) sum[r] = f_add(sum[r], f_mul(f_set(feedback[j * stride + r]), error));
    }
    for (int r = 0; r < 16; ++r) f_store(targets + 16 * r, sum[r]);
}

}  // namespace EXL_ISA
