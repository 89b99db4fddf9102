// Attention in f32: what a block of 16 rows does with tiles of 64, and the forward pass.
//
// A warp has 4 rows of the block, a lane 2 columns of a tile where it multiplies with its rows, and up to 4 columns of the
// head where it adds its rows up. All sums are chains in ascending order, but for that of the softmax: a lane adds its own
// columns, the lanes follow as a butterfly.
#pragma once
#include "attention.cuh"

constexpr int F32_THREADS = 128;
constexpr int ROWS = 4, BLOCK_ROWS = ROWS * F32_THREADS / 32;
// Columns of a lane: of a tile, and of a head of at most 128 elements.
constexpr int COLUMNS = KEYS / 32, HEAD_COLUMNS = 4;

// Elements between the starts of two rows of a tile: 8 lanes then read 16 bytes of 8 rows from different banks.
static __device__ __forceinline__ int pitch(int dim) { return dim + 4; }

// First of the rows of this warp, within the block.
static __device__ __forceinline__ int warp_row() { return threadIdx.x / 32 * ROWS; }

// Copies rows 0 to ROWS_ - 1, of dim elements, `to_stride` apart, with zeros for those from `count` on. from(row) is a pointer.
template <int ROWS_, class From>
__device__ __forceinline__ void copy_rows(float* to, int to_stride, int dim, int count, From from) {
    const int packs = dim / 4;
    for (int i = threadIdx.x; i < ROWS_ * packs; i += F32_THREADS) {
        const int row = i / packs, column = i % packs * 4;
        Pack<float> pack = {};
        if (row < count) pack = *reinterpret_cast<const Pack<float>*>(from(row) + column);
        *reinterpret_cast<Pack<float>*>(to + row * to_stride + column) = pack;
    }
}

// A tile of a matrix whose rows are `stride` elements apart.
static __device__ __forceinline__ void copy_tile(float* to, const float* from, int64_t stride, int dim, int count) {
    copy_rows<KEYS>(to, pitch(dim), dim, count, [&](int row) { return from + row * stride; });
}

// s[r][c] = rows[r] . tile[lane + 32 c] for this warp's rows, `dim` elements each.
static __device__ __forceinline__ void multiply_rows(float (&s)[ROWS][COLUMNS], const float* rows, const float* tile, int dim) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) s[r][c] = 0.0f;
    const int lane = threadIdx.x % 32;
    for (int d = 0; d < dim; d += 4) {
        Pack<float> b[COLUMNS];
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) b[c] = *reinterpret_cast<const Pack<float>*>(tile + (lane + c * 32) * pitch(dim) + d);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const Pack<float> a = *reinterpret_cast<const Pack<float>*>(rows + (warp_row() + r) * dim + d);
#pragma unroll
            for (int c = 0; c < COLUMNS; c++)
#pragma unroll
                for (int j = 0; j < 4; j++) s[r][c] = __fmaf_rn(a.at[j], b[c].at[j], s[r][c]);
        }
    }
}

// The numbers of this warp's rows for the columns of a tile, where all lanes can read them: weights [BLOCK_ROWS, KEYS].
static __device__ __forceinline__ void share(float* weights, const float (&w)[ROWS][COLUMNS]) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) weights[(warp_row() + r) * KEYS + threadIdx.x % 32 + c * 32] = w[r][c];
    __syncwarp();
}

// Sums of a lane for its warp's rows: element lane + 32 c of the head at [r][c].
using Sums = float[ROWS][HEAD_COLUMNS];

// sums[r][c] += sum over j of weights[r][j] tile[j][lane + 32 c].
static __device__ __forceinline__ void add_weighted(Sums& sums, const float* weights, const float* tile, int dim) {
    const int lane = threadIdx.x % 32;
    for (int j = 0; j < KEYS; j++) {
#pragma unroll
        for (int c = 0; c < HEAD_COLUMNS; c++) {
            if (lane + c * 32 < dim) {
                const float x = tile[j * pitch(dim) + lane + c * 32];
#pragma unroll
                for (int r = 0; r < ROWS; r++) sums[r][c] = __fmaf_rn(weights[(warp_row() + r) * KEYS + j], x, sums[r][c]);
            }
        }
    }
}

// Stores the sums of this warp's row r, times `factor`.
static __device__ __forceinline__ void store_row(float* row, const Sums& sums, int r, int dim, float factor) {
#pragma unroll
    for (int c = 0; c < HEAD_COLUMNS; c++) {
        const int column = threadIdx.x % 32 + c * 32;
        if (column < dim) row[column] = sums[r][c] * factor;
    }
}

// The rows q[packed] of a block in shared memory; those beyond the last one are 0.
static __device__ __forceinline__ void copy_queries(float* to, const float* q, const Queries& queries, int first, int dim) {
    copy_rows<BLOCK_ROWS>(to, dim, dim, queries.count() - first, [&](int row) { return q + queries.vector(first + row, dim); });
}

// As in bf16 (attention_bf16.cuh), for 16 packed rows from `first` on. Shared memory: 2 tiles [KEYS, pitch], q [16, dim],
// weights [16, KEYS].
template <class Place>
__device__ __forceinline__ void attend(const float* q, const float* k, const float* v, float* o, float* lse, const Queries& queries,
                                       const Sight<Place>& sight, int first, int rows, int key_heads, int dim, float scale) {
    float* keys = reinterpret_cast<float*>(dyn_smem());
    float* values = keys + KEYS * pitch(dim);
    float* own_q = values + KEYS * pitch(dim);
    float* weights = own_q + BLOCK_ROWS * dim;
    copy_queries(own_q, q, queries, first, dim);

    const int count = queries.count(), lane = threadIdx.x % 32;
    const int64_t stride = (int64_t)key_heads * dim, column = queries.key_head * dim;
    Sums sums = {};
    float tops[ROWS], totals[ROWS] = {};
#pragma unroll
    for (int r = 0; r < ROWS; r++) tops[r] = -INFINITY;
    const int tiles = sight.tiles(queries.token(min(first + BLOCK_ROWS, count) - 1));
    for (int i = 0; i < tiles; i++) {
        const KeyTile tile = sight.tile(i);
        // All have done with the tile before.
        __syncthreads();
        copy_tile(keys, k + tile.row * stride + column, stride, dim, tile.count);
        copy_tile(values, v + tile.row * stride + column, stride, dim, tile.count);
        __syncthreads();
        float s[ROWS][COLUMNS];
        multiply_rows(s, own_q, keys, dim);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int visible = tile.visible(sight.hidden(queries.token(min(first + warp_row() + r, count - 1))));
            float top = -INFINITY;
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                if (lane + c * 32 >= visible) s[r][c] = -INFINITY;
                top = fmaxf(top, s[r][c]);
            }
#pragma unroll
            for (int distance = 16; distance > 0; distance /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, distance));
            const float before = tops[r];
            tops[r] = fmaxf(before, top * scale);
            const float keep = exp2_approx(before - tops[r]);
            float sum = 0.0f;
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                s[r][c] = exp2_approx(__fmaf_rn(s[r][c], scale, -tops[r]));
                sum += s[r][c];
            }
            totals[r] = __fmaf_rn(totals[r], keep, sum);
#pragma unroll
            for (int c = 0; c < HEAD_COLUMNS; c++) sums[r][c] *= keep;
        }
        share(weights, s);
        add_weighted(sums, weights, values, dim);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const float total = warp_sum(totals[r]);
        const int packed = first + warp_row() + r;
        if (packed < count) {
            store_row(o + queries.vector(packed, dim), sums, r, dim, 1.0f / total);
            if (lse && lane == 0) lse[queries.statistic(packed, rows)] = tops[r] + log2f(total);
        }
    }
}
