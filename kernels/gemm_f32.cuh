// C[M, N] = A B in f32 by ordinary multiply-adds.
//
// An element of C is the chain sum = fma(a[m][k], b[k][n], sum) over k = 0, 1, ... from 0: the CPU's law (src/ops/gemm.rs),
// so the same bits.
#pragma once
#include "gemm.cuh"

// A block of 64 threads computes 64 x 64 elements, each thread 8 x 8; a step takes 8 of K. Two steps are in shared memory at
// once: 8704 bytes.
constexpr int BLOCK = 64, STEP = 8;

// A row-major f32 matrix in global memory; elements outside of it are 0.
struct MatrixF32 {
    const float* data;
    int rows, cols, stride;

    __device__ __forceinline__ float at(int row, int col) const {
        return row < rows && col < cols ? data[(int64_t)row * stride + col] : 0.0f;
    }
};

// A factor's elements of a step, [k][row of A or column of B].
struct StepTile {
    __align__(16) float x[STEP][BLOCK + 4];
};

// A thread's share of a step on the way from global memory; neighbouring threads have neighbouring elements.
template <bool K_INNERMOST>
struct Fetched {
    float x[STEP];

    template <class Source>
    __device__ __forceinline__ void fetch(const Source& source, int extent, int k) {
        const int t = threadIdx.x;
#pragma unroll
        for (int i = 0; i < STEP; i++) {
            x[i] = K_INNERMOST ? source.at(extent + i * STEP + t / STEP, k + t % STEP) : source.at(k + i, extent + t);
        }
    }

    __device__ __forceinline__ void store(StepTile& tile) const {
        const int t = threadIdx.x;
#pragma unroll
        for (int i = 0; i < STEP; i++) (K_INNERMOST ? tile.x[t % STEP][i * STEP + t / STEP] : tile.x[i][t]) = x[i];
    }
};

// The whole kernel, the block's tile of C: `A` and `B` are `MatrixF32`, or what has its `at`.
template <bool A_INNERMOST, bool B_INNERMOST, class A, class B>
__device__ __forceinline__ void multiply_tile_f32(const A& a, const B& b, int depth, const Output<float, float>& c) {
    StepTile(*tiles)[2] = reinterpret_cast<StepTile(*)[2]>(dyn_smem());
    const int m = blockIdx.x * BLOCK, n = blockIdx.y * BLOCK;
    // A thread's rows and columns: four from 4 * thread_m on, and the four that are half a block further.
    const int thread_m = threadIdx.x / 8 * 4, thread_n = threadIdx.x % 8 * 4;
    Fetched<A_INNERMOST> next_a;
    Fetched<B_INNERMOST> next_b;
    float sums[8][8];
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) sums[i][j] = 0.0f;

    next_a.fetch(a, m, 0);
    next_b.fetch(b, n, 0);
    for (int step = 0; step * STEP < depth; step++) {
        StepTile* tile = tiles[step % 2];
        next_a.store(tile[0]);
        next_b.store(tile[1]);
        // One barrier is enough: a thread that is past the next one no longer reads what is overwritten after it.
        __syncthreads();
        next_a.fetch(a, m, (step + 1) * STEP);
        next_b.fetch(b, n, (step + 1) * STEP);
#pragma unroll
        for (int k = 0; k < STEP; k++) {
            float xa[8], xb[8];
#pragma unroll
            for (int i = 0; i < 8; i++) xa[i] = tile[0].x[k][thread_m + i % 4 + i / 4 * (BLOCK / 2)];
#pragma unroll
            for (int j = 0; j < 8; j++) xb[j] = tile[1].x[k][thread_n + j % 4 + j / 4 * (BLOCK / 2)];
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) sums[i][j] = fmaf(xa[i], xb[j], sums[i][j]);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int row = m + thread_m + i % 4 + i / 4 * (BLOCK / 2), col = n + thread_n + j % 4 + j / 4 * (BLOCK / 2);
            const int64_t at = (int64_t)row * c.stride + col;
            if (row < c.rows && col < c.cols) c.c[at] = c.finish(sums[i][j], at, col);
        }
}
