// The passes over a whole vocabulary that sampling needs.
#pragma once

#include "exl_cpu.h"
#include "simd.h"

namespace EXL_ISA {

// Largest logit; NaN when a logit is NaN or +infinity. -infinity (a banned token) is allowed.
float logits_peak(const float* logits, int32_t n) {
    constexpr float infinity = __builtin_inff();
    f32v peak = f_set(-infinity), nan = f_zero();
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const f32v x = f_load(logits + i);
        // max(a, b) is b when either is NaN, so a NaN in x survives as the difference from itself.
        const f32v bounded = f_max(f_set(-3.0e38f), x);
        nan = f_add(nan, f_sub(bounded, bounded));
        peak = f_max(peak, x);
    }
    float best = f_max_lane(peak), bad = f_sum(nan);
    for (; i < n; ++i) {
        if (!(logits[i] < infinity)) bad = infinity - infinity;
        best = logits[i] > best ? logits[i] : best;
    }
    return bad == 0.0f ? best : infinity - infinity;
}

// Calls each(value, place) for groups of 16 logits; the last one is filled up with `padding`. each returns what is stored.
template <typename Each> inline void in_groups(const float* in, int32_t n, float padding, float* out, Each each) {
    int i = 0;
    for (; i + 16 <= n; i += 16) f_store(out + i, each(f_load(in + i)));
    if (i == n) return;
    float line[16];
    for (int j = 0; j < 16; ++j) line[j] = i + j < n ? in[i + j] : padding;
    f_store(line, each(f_load(line)));
    for (int j = 0; i + j < n; ++j) out[i + j] = line[j];
}

// out[i] = factor * d^2 * (s * d - k), d = logits[i] - peak, k = (3 - curve) / 2, s = (curve - 1) / 2. out may be logits.
void smooth(const float* logits, int32_t n, float peak, float factor, float curve, float* out) {
    const f32v k = f_set((curve - 3.0f) / 2), s = f_set((curve - 1.0f) / 2), top = f_set(peak), a = f_set(factor);
    const f32v lowest = f_set(-1e9f);  // so that the cube of -infinity stays finite
    in_groups(logits, n, peak, out, [&](f32v x) {
        const f32v d = f_max(f_sub(x, top), lowest);
        return f_mul(a, f_mul(f_mul(d, d), f_fma(s, d, k)));
    });
}

// out[i] = exp((logits[i] - peak) * scale); returns their sum. out may be logits.
double exponentials(const float* logits, int32_t n, float peak, float scale, float* out) {
    double total = 0;
    const f32v top = f_set(peak), factor = f_set(scale);
    in_groups(logits, n, -__builtin_inff(), out, [&](f32v x) {
        const f32v e = f_exp(f_mul(f_sub(x, top), factor));
        total += double(f_sum(e));
        return e;
    });
    return total;
}

// Entropy in nats of the distribution whose logits these are: ln Z - sum(w * d) / Z, w = e^d, d = logits[i] - peak.
double entropy(const float* logits, int32_t n, float peak) {
    double total = 0, weighted = 0;
    const f32v top = f_set(peak), lowest = f_set(-87.0f);
    const auto add = [&](f32v x) {
        const f32v d = f_max(f_sub(x, top), lowest), e = f_exp(d);
        total += double(f_sum(e));
        weighted += double(f_sum(f_mul(e, d)));
    };
    int i = 0;
    for (; i + 16 <= n; i += 16) add(f_load(logits + i));
    float line[16];
    for (int j = 0; j < 16; ++j) line[j] = i + j < n ? logits[i + j] : -__builtin_inff();
    if (i < n) add(f_load(line));
    return __builtin_log(total) - weighted / total;
}

// The places i, ascending, with low <= values[i] < high; out has room for all n. Returns how many, and looks no further
// once that is `limit` or more.
int32_t between(const float* values, int32_t n, float low, float high, int32_t limit, int32_t* out) {
    int32_t count = 0;
    const auto scan = [&](int begin, int end) {
        for (int i = begin; i < end; ++i) {
            out[count] = i;
            count += values[i] >= low && values[i] < high;
        }
    };
    int i = 0;
    for (; i + 64 <= n && count < limit; i += 64) {  // most groups hold nothing so large
        const float* v = values + i;
        const f32v most = f_max(f_max(f_load(v), f_load(v + 16)), f_max(f_load(v + 32), f_load(v + 48)));
        if (f_max_lane(most) >= low) scan(i, i + 64);
    }
    if (count < limit) scan(i, n);
    return count;
}

}  // namespace EXL_ISA
