// The wrappers that hold inline PTX under nvcc (kernels/arch.cuh documents each), over their emulation in
// runtime/ptx_*.cc.
#pragma once
#include "fiber.h"
#include "ptx_async.h"
#include "ptx_matrix.h"
#include "ptx_wgmma.h"
#include "shared.h"

namespace cuemu {
/// Subnormal numbers become zeros of their sign, as .ftz has it.
static inline float flush_subnormal(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }
}  // namespace cuemu

static inline float exp2_approx(float x) { return cuemu::flush_subnormal(exp2f(cuemu::flush_subnormal(x))); }
static inline float rcp_approx(float x) { return cuemu::flush_subnormal(1.0f / cuemu::flush_subnormal(x)); }
