// CUDA's keywords and vector types.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
// A block runs on one thread of the host from its start to its end, so that a copy per thread is a copy per block. At
// block scope thread_local implies static, as __shared__ does.
#define __shared__ thread_local

/// A function of the driver that twins call.
#define CUEMU_API __attribute__((visibility("default")))
/// A function that runs in a twin but isn't kernel code: the checks don't see its memory accesses.
#define CUEMU_UNCHECKED __attribute__((no_sanitize("thread", "alignment", "bounds")))
/// The caller's source line, as default arguments at the end of a wrapper's parameters: every report names it.
#define CUEMU_WHERE const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE()
#define CUEMU_HERE file_, line_

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

#define CUEMU_VECTORS(T, name)                                                                           \
    struct __align__(2 * sizeof(T)) name##2 {                                                            \
        T x, y;                                                                                          \
    };                                                                                                   \
    struct __align__(sizeof(T) == 8 ? 16 : 4 * sizeof(T)) name##4 {                                      \
        T x, y, z, w;                                                                                    \
    };                                                                                                   \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                    \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUEMU_VECTORS(float, float)
CUEMU_VECTORS(double, double)
CUEMU_VECTORS(int, int)
CUEMU_VECTORS(unsigned, uint)
CUEMU_VECTORS(unsigned char, uchar)
CUEMU_VECTORS(unsigned short, ushort)
#undef CUEMU_VECTORS
