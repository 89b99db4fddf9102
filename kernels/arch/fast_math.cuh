// Approximations by the special function unit. Their last bits differ from one machine to another.
#pragma once
#include "target.cuh"

// ex2.approx.ftz.f32: 2^x, relative error below 2^-22; subnormal input and output become 0.
ARCH_FN float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// rcp.approx.ftz.f32: 1/x, within 1 unit in the last place; subnormal input and output become 0.
ARCH_FN float rcp_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
