// Tensor cores of compute capability 8.0 and later: 8x8 matrices out of shared memory, and the warp's matrix product.
//
// Throughout, `g = lane / 4` and `t = lane % 4`. A register holds two neighbouring bf16 elements, the first one in its low
// half. All 32 lanes of the warp take part in every call.
#pragma once
#include "target.cuh"

// ldmatrix.sync.aligned.m8n8.x1.shared.b16: one 8x8 matrix of 16-bit elements.
// Lane i (0 <= i < 8) gives the shared address, 16-byte aligned, of row i; the other lanes' addresses are ignored.
// r[0] of a lane = row g, columns 2t and 2t+1.
ARCH_FN void ldmatrix_x1(uint32_t (&r)[1], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(row) : "memory");
}

// ldmatrix.sync.aligned.m8n8.x2.shared.b16: two matrices; lane i (0 <= i < 16) gives row i % 8 of matrix i / 8.
// r[m] of a lane = row g, columns 2t and 2t+1 of matrix m.
ARCH_FN void ldmatrix_x2(uint32_t (&r)[2], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(row) : "memory");
}

// ldmatrix.sync.aligned.m8n8.x4.shared.b16: four matrices; lane i gives row i % 8 of matrix i / 8.
// r[m] of a lane = row g, columns 2t and 2t+1 of matrix m.
ARCH_FN void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}

// ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16: as ldmatrix_x1, the matrix transposed on its way:
// r[0] of a lane = rows 2t and 2t+1 of column g.
ARCH_FN void ldmatrix_x1_trans(uint32_t (&r)[1], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(row) : "memory");
}

// ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16: as ldmatrix_x2, each matrix transposed:
// r[m] of a lane = rows 2t and 2t+1 of column g of matrix m.
ARCH_FN void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(row) : "memory");
}

// ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16: as ldmatrix_x4, each matrix transposed:
// r[m] of a lane = rows 2t and 2t+1 of column g of matrix m.
ARCH_FN void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32: D[16, 8] += A[16, 16] * B[16, 8], accumulated in f32.
// A: a[0] = (row g, cols 2t, 2t+1)    a[1] = (row g+8, cols 2t, 2t+1)
//    a[2] = (row g, cols 2t+8, 2t+9)  a[3] = (row g+8, cols 2t+8, 2t+9)
// B: b0 = (rows 2t, 2t+1, col g)      b1 = (rows 2t+8, 2t+9, col g)
// D: d[0], d[1] = (row g, cols 2t, 2t+1)   d[2], d[3] = (row g+8, cols 2t, 2t+1)
// The order in which the 16 products of an element are summed is the hardware's own: no code may count on one.
ARCH_FN void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// One 16-row tile of A times NT 16-wide tiles of B out of shared memory: D[16, 16*NT] += A[16, 16] * B[16, 16*NT], as NT
// times ldmatrix.x4 (`TRANS`: .trans) and two mma.m16n8k16. The unit to write kernels in: the emulator meets the warp once
// for it instead of 3*NT times.
// a: as in mma_m16n8k16_bf16. d[2*n + h]: columns 16*n + 8*h and following, each laid out as there.
// row[n]: this lane's row address for tile n. Matrices 0 and 1 give b0 and b1 of the tile's left half, 2 and 3 those of
// its right half. With B stored [n, k] (K innermost): TRANS = false, lane i gives row n = i % 8 + 8 * (i / 16), from
// k = 8 * (i / 8 % 2) on. With B stored [k, n]: TRANS = true, lane i gives row k = i % 16, from n = 8 * (i / 16) on.
template <int NT, bool TRANS>
ARCH_FN void mma_ldmatrix(float (*d)[4], const uint32_t (&a)[4], const uint32_t (&row)[NT]) {
#pragma unroll
    for (int n = 0; n < NT; n++) {
        uint32_t b[4];
        if (TRANS) {
            ldmatrix_x4_trans(b, row[n]);
        } else {
            ldmatrix_x4(b, row[n]);
        }
        mma_m16n8k16_bf16(d[2 * n], a, b[0], b[1]);
        mma_m16n8k16_bf16(d[2 * n + 1], a, b[2], b[3]);
    }
}
