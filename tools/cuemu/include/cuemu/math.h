// Device functions of one thread: arithmetic, bits, conversions. The approximate ones are exact here; a GPU's differ in
// the last places.
#pragma once
#include "language.h"

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline double __dsqrt_rn(double x) { return sqrt(x); }
static inline float __saturatef(float x) { return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f; }
// The C library declares some of these itself, hence macros.
#define __expf(x) expf(x)
#define __exp2f(x) exp2f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __powf(x, y) powf(x, y)

// Rounded once, never contracted into a fused multiply-add.
#define CUEMU_ROUNDED(T, name, op)                                                                       \
    static inline T name(T a, T b) {                                                                     \
        T r = a op b;                                                                                    \
        __asm__("" : "+x"(r));                                                                           \
        return r;                                                                                        \
    }
CUEMU_ROUNDED(float, __fadd_rn, +)
CUEMU_ROUNDED(float, __fsub_rn, -)
CUEMU_ROUNDED(float, __fmul_rn, *)
CUEMU_ROUNDED(float, __fdiv_rn, /)
CUEMU_ROUNDED(double, __dadd_rn, +)
CUEMU_ROUNDED(double, __dsub_rn, -)
CUEMU_ROUNDED(double, __dmul_rn, *)
CUEMU_ROUNDED(double, __ddiv_rn, /)
#undef CUEMU_ROUNDED
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }

static inline unsigned __float_as_uint(float f) { return __builtin_bit_cast(unsigned, f); }
static inline float __uint_as_float(unsigned u) { return __builtin_bit_cast(float, u); }
static inline int __float_as_int(float f) { return __builtin_bit_cast(int, f); }
static inline float __int_as_float(int i) { return __builtin_bit_cast(float, i); }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t(a) * b) >> 32; }
static inline int __float2int_rn(float x) { return int(lrintf(x)); }

#define CUEMU_MINMAX(T)                                                                                  \
    static inline T min(T a, T b) { return a < b ? a : b; }                                              \
    static inline T max(T a, T b) { return a > b ? a : b; }
CUEMU_MINMAX(int)
CUEMU_MINMAX(unsigned)
CUEMU_MINMAX(long)
CUEMU_MINMAX(unsigned long)
CUEMU_MINMAX(long long)
CUEMU_MINMAX(unsigned long long)
#undef CUEMU_MINMAX
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
