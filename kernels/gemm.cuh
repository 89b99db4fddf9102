// C[M, N] = A B on the tensor cores: bf16 factors, f32 sums.
//
// The law of the sums: an element of C is one chain of mma.m16n8k16 over k = 0, 16, 32, ..., each starting from the sum
// so far. Every tile shape takes the same steps along K, what lies outside a factor is 0, and a row of an mma depends on
// no other row. So all tile shapes, all M and N and all alignments give the same bits.
//
// A factor is stored with K innermost (A as [M, K], B as [N, K]) or outermost (A as [K, M], B as [K, N]); ldmatrix
// transposes the latter on the way to the registers.
#pragma once
#include "common.cuh"

// Elements of K per step.
constexpr int DEPTH = 32;

// Elements between the end of a shared row and the next: the 8 rows of an ldmatrix then lie in different banks, for rows
// of 32, 64 and 128 elements alike.
constexpr int PAD = 8;

// Which part of C a block computes, by how many warps, and how many steps lie in shared memory at once.
template <int M_, int N_, int WARPS_M_, int WARPS_N_, int STAGES_>
struct Shape {
    static constexpr int M = M_, N = N_, WARPS_N = WARPS_N_, STAGES = STAGES_;
    static constexpr int THREADS = 32 * WARPS_M_ * WARPS_N_;
    static constexpr int WARP_M = M / WARPS_M_, WARP_N = N / WARPS_N_;
    // A warp's part, in tiles of 16 x 16.
    static constexpr int TILES_M = WARP_M / 16, TILES_N = WARP_N / 16;
};

// 80, 40 and 45 KiB of shared memory (`Tile` in src/ops/gemm/cuda.rs has the same numbers).
using Large = Shape<128, 128, 2, 4, 4>;
using Small = Shape<64, 64, 2, 2, 4>;
// For few rows, where reading B takes the time: narrow, so that there are many blocks, with many reads under way in each.
using Skinny = Shape<16, 32, 1, 2, 12>;

// A row-major bf16 matrix in global memory.
struct Matrix {
    const bf16* data;
    int rows, cols, stride;
    bool vectors;  // every row begins at a multiple of 16 bytes

    __device__ Matrix(const bf16* data, int rows, int cols, int stride)
        : data(data), rows(rows), cols(cols), stride(stride), vectors(((uintptr_t)data | stride * 2) % 16 == 0) {}

    // Elements (row, col) to (row, col + 7), 0 outside of the matrix, into shared memory.
    __device__ __forceinline__ void load8(bf16* to, int row, int col) const {
        const int inside = row < rows ? min(max(cols - col, 0), 8) : 0;
        const bf16* from = data + (int64_t)row * stride + col;
        if (vectors) {
            cp_async16(smem_u32(to), from, inside * 2);
        } else {
            *reinterpret_cast<Pack<bf16>*>(to) = load_pack<bf16>(from, inside);
        }
    }
};

// The tile of a factor that a step needs, EXTENT rows of A or columns of B, as it lies in shared memory.
template <bool K_INNERMOST, int EXTENT>
struct FactorTile {
    static constexpr int ROWS = K_INNERMOST ? EXTENT : DEPTH, COLS = K_INNERMOST ? DEPTH : EXTENT;
    static constexpr int PITCH = COLS + PAD, SIZE = ROWS * PITCH;

    // From row or column `extent` and from `k` on, by all the block's threads. There after cp_async_wait and a barrier.
    template <int THREADS, class Source>
    static __device__ __forceinline__ void load(bf16* tile, const Source& source, int extent, int k) {
        const int row = K_INNERMOST ? extent : k, col = K_INNERMOST ? k : extent;
        for (int i = threadIdx.x * 8; i < ROWS * COLS; i += THREADS * 8) {
            source.load8(tile + i / COLS * PITCH + i % COLS, row + i / COLS, col + i % COLS);
        }
    }

    // The 16 x 16 part at (extent, k).
    static __device__ __forceinline__ int at(int extent, int k) {
        return K_INNERMOST ? extent * PITCH + k : k * PITCH + extent;
    }

    // The row that this lane points ldmatrix at. Of the four 8 x 8 matrices of a 16 x 16 part, mma wants A's as
    // (m, k) = (0, 0), (8, 0), (0, 8), (8, 8), and B's as (n, k) = (0, 0), (0, 8), (8, 0), (8, 8): in one of the two
    // ways of storing it they come down the rows first, in the other along them.
    template <bool DOWN_FIRST>
    static __device__ __forceinline__ int lane_row(int lane) {
        return DOWN_FIRST ? lane % 16 * PITCH + lane / 16 * 8 : (lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 8;
    }

    static __device__ __forceinline__ void fragment(uint32_t (&r)[4], uint32_t address) {
        if constexpr (K_INNERMOST) {
            ldmatrix_x4(r, address);
        } else {
            ldmatrix_x4_trans(r, address);
        }
    }
};

// A warp's part of the sums, as mma leaves them: [tile of 16 rows][tile of 8 columns][element].
template <class S>
using Sums = float[S::TILES_M][2 * S::TILES_N][4];

// The sums of the part of C that begins at (m, n). `A` and `B` are sources of tiles: `Matrix`, or what has its `load8`.
template <class S, bool A_INNERMOST, bool B_INNERMOST, class A, class B>
__device__ __forceinline__ void multiply(Sums<S>& sums, const A& a, const B& b, int m, int n, int depth, bf16* shared) {
    using TileA = FactorTile<A_INNERMOST, S::M>;
    using TileB = FactorTile<B_INNERMOST, S::N>;
    constexpr int STAGE = TileA::SIZE + TileB::SIZE;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    const auto load = [&](int step) {
        bf16* stage = shared + step % S::STAGES * STAGE;
        TileA::template load<S::THREADS>(stage, a, m, step * DEPTH);
        TileB::template load<S::THREADS>(stage + TileA::SIZE, b, n, step * DEPTH);
        cp_async_commit();
    };
#pragma unroll
    for (int i = 0; i < S::TILES_M; i++)
#pragma unroll
        for (int j = 0; j < 2 * S::TILES_N; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[i][j][e] = 0.0f;

    const int warp_m = warp / S::WARPS_N * S::WARP_M, warp_n = warp % S::WARPS_N * S::WARP_N;
    const int row_a = TileA::at(warp_m, 0) + TileA::template lane_row<A_INNERMOST>(lane);
    const int row_b = TileA::SIZE + TileB::at(warp_n, 0) + TileB::template lane_row<!B_INNERMOST>(lane);
    // The loads run STAGES - 1 steps ahead, so the first rounds have nothing to multiply yet.
    for (int step = 1 - S::STAGES; step * DEPTH < depth; step++) {
        if (step >= 0) {
            // This step has come, for all threads, and all have done with the one before, whose place the load takes.
            cp_async_wait<S::STAGES - 2>();
            __syncthreads();
        }
        load(step + S::STAGES - 1);
        if (step < 0) continue;
        const uint32_t stage = smem_u32(shared + step % S::STAGES * STAGE);
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            uint32_t fa[S::TILES_M][4];
#pragma unroll
            for (int i = 0; i < S::TILES_M; i++) TileA::fragment(fa[i], stage + 2 * (row_a + TileA::at(16 * i, k)));
#pragma unroll
            for (int j = 0; j < S::TILES_N; j++) {
                uint32_t fb[4];
                TileB::fragment(fb, stage + 2 * (row_b + TileB::at(16 * j, k)));
#pragma unroll
                for (int i = 0; i < S::TILES_M; i++) {
                    mma_m16n8k16_bf16(sums[i][2 * j], fa[i], fb[0], fb[1]);
                    mma_m16n8k16_bf16(sums[i][2 * j + 1], fa[i], fb[2], fb[3]);
                }
            }
        }
    }
}

// Where the sums go: C, row-major. `bias[col]` (unless null) and the old C (if `accumulate`) are added in f32 before the
// one rounding to T.
template <class T, class Bias>
struct Output {
    T* c;
    int rows, cols, stride;
    const Bias* bias;
    bool accumulate;

    __device__ __forceinline__ T finish(float sum, int64_t at, int col) const {
        if (bias) sum += to_float(bias[col]);
        if (accumulate) sum += to_float(c[at]);
        return from_float<T>(sum);
    }

    // The part that begins at (m, n).
    template <class S>
    __device__ __forceinline__ void store(const Sums<S>& sums, int m, int n) const {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < 2 * S::TILES_M; i++) {
            const int row = m + warp / S::WARPS_N * S::WARP_M + 8 * i + lane / 4;
            if (row >= rows) return;
#pragma unroll
            for (int j = 0; j < 2 * S::TILES_N; j++) {
                const int col = n + warp % S::WARPS_N * S::WARP_N + 8 * j + lane % 4 * 2;
                const int64_t at = (int64_t)row * stride + col;
                Pack<T, 2> pair;
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    if (col + e < cols) pair.at[e] = finish(sums[i / 2][j][i % 2 * 2 + e], at + e, col + e);
                }
                store_pack(c + at, cols - col, pair);
            }
        }
    }
};

// The whole kernel: the block's tile of C.
template <class S, bool A_INNERMOST, bool B_INNERMOST, class A, class B, class C>
__device__ __forceinline__ void multiply_tile(const A& a, const B& b, int depth, const C& c) {
    const int m = blockIdx.x * S::M, n = blockIdx.y * S::N;
    Sums<S> sums;
    multiply<S, A_INNERMOST, B_INNERMOST>(sums, a, b, m, n, depth, (bf16*)dyn_smem());
    c.template store<S>(sums, m, n);
}
