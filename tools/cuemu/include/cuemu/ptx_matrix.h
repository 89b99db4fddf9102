// ldmatrix and mma.sync.
#pragma once
#include "fiber.h"

namespace cuemu {
/// `registers` (one per matrix) get this lane's part of 1, 2 or 4 matrices whose rows the lanes' addresses give.
CUEMU_API void ldmatrix(uint32_t* registers, int matrices, bool transposed, uint32_t row, const char* file, int line);
CUEMU_API void mma_m16n8k16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, const char* file, int line);
/// `tiles` times ldmatrix.x4 and two mma.m16n8k16, in one meeting of the warp.
CUEMU_API void mma_ldmatrix_tiles(float (*d)[4], const uint32_t* a, const uint32_t* rows, int tiles, bool transposed,
                                  const char* file, int line);
}  // namespace cuemu

static inline void ldmatrix_x1(uint32_t (&r)[1], uint32_t row, CUEMU_WHERE) {
    cuemu::ldmatrix(r, 1, false, row, CUEMU_HERE);
}
static inline void ldmatrix_x2(uint32_t (&r)[2], uint32_t row, CUEMU_WHERE) {
    cuemu::ldmatrix(r, 2, false, row, CUEMU_HERE);
}
static inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t row, CUEMU_WHERE) {
    cuemu::ldmatrix(r, 4, false, row, CUEMU_HERE);
}
static inline void ldmatrix_x1_trans(uint32_t (&r)[1], uint32_t row, CUEMU_WHERE) {
    cuemu::ldmatrix(r, 1, true, row, CUEMU_HERE);
}
static inline void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t row, CUEMU_WHERE) {
    cuemu::ldmatrix(r, 2, true, row, CUEMU_HERE);
}
static inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row, CUEMU_WHERE) {
    cuemu::ldmatrix(r, 4, true, row, CUEMU_HERE);
}
static inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, CUEMU_WHERE) {
    cuemu::mma_m16n8k16(d, a, b0, b1, CUEMU_HERE);
}
template <int NT, bool TRANS>
static inline void mma_ldmatrix(float (*d)[4], const uint32_t (&a)[4], const uint32_t (&row)[NT], CUEMU_WHERE) {
    cuemu::mma_ldmatrix_tiles(d, a, row, NT, TRANS, CUEMU_HERE);
}
