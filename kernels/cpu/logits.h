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

// out[i] = exp((logits[i] - peak) * scale); returns their sum.
double exponentials(const float* logits, int32_t n, float peak, float scale, float* out) {
    double total = 0;
    const f32v top = f_set(peak), factor = f_set(scale);
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const f32v e = f_exp(f_mul(f_sub(f_load(logits + i), top), factor));
        f_store(out + i, e);
        total += double(f_sum(e));
    }
    for (; i < n; ++i) {
        float line[16] = {};
        line[0] = (logits[i] - peak) * scale;
        f_store(line, f_exp(f_load(line)));
        out[i] = line[0];
        total += double(line[0]);
    }
    return total;
}

}  // namespace EXL_ISA
