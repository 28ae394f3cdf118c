// Sine and cosine of large angles without the local memory that sinf needs for them.
#pragma once

#include "exl/math.h"

namespace exl {
namespace rope {

// Taylor series of sine and cosine for |x| <= pi / 4, where their next terms are below 2e-13.
EXL_DEVICE double sine(double x) {
    const double y = x * x;
    return x *
           (1.0 + y * (-1.0 / 6 + y * (1.0 / 120 + y * (-1.0 / 5040 + y * (1.0 / 362880 + y * (-1.0 / 39916800))))));
}
EXL_DEVICE double cosine(double x) {
    const double y = x * x;
    return 1.0 + y * (-1.0 / 2 +
                      y * (1.0 / 24 + y * (-1.0 / 720 + y * (1.0 / 40320 + y * (-1.0 / 3628800 + y / 479001600)))));
}

// (cos, sin), of which each is right to 1e-12 for angles up to 2^31.
EXL_DEVICE double2 cosine_and_sine(float angle) {
    constexpr double two_over_pi = 0.63661977236758134, pi_half = 1.5707963267341256,
                     pi_half_rest = 6.0771005065061922e-11;
    const double turns = rint(angle * two_over_pi);
    const double x = (angle - turns * pi_half) - turns * pi_half_rest;  // pi_half has 33 bits: turns * pi_half is exact
    const double s = sine(x), c = cosine(x);
    switch (static_cast<int64_t>(turns) & 3) {
        case 0: return make_double2(c, s);
        case 1: return make_double2(-s, c);
        case 2: return make_double2(-c, -s);
        default: return make_double2(s, -c);
    }
}

}  // namespace rope
}  // namespace exl
