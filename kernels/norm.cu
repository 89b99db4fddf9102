// RMSNorm and LayerNorm, alone and behind a residual addition: src/ops/norm.rs has formulas and roundings.
//
// A block has a row; its sums are block_sums' fixed trees over a fixed distribution of the columns (for_packs), so a row's
// bits depend on nothing but the row. LayerNorm is CENTRED: it has a mean and a bias.
#include "common.cuh"

constexpr int THREADS = 128;

// y = norm(x), or with a residual (it may be null) h = x + residual and y = norm(h).
// x, residual, h, y [T, width]; weight, bias [width]; mean_t, rstd_t [T] are kept for the backward pass.
template <bool CENTRED, class T>
__device__ __forceinline__ void norm_forward(const T* x, const T* residual, const T* weight, const T* bias, T* h, T* y,
                                             float* mean_t, float* rstd_t, int32_t width, float eps) {
    constexpr int N = PACK<T>;
    const int64_t row = blockIdx.x;
    const T* source = row_of(x, row, width);
    if (residual) {
        T* sum = row_of(h, row, width);
        for_packs<T, THREADS>(width, [&](int32_t i, int32_t count) {
            Pack<T> pack = load_pack(source + i, count);
            const Pack<T> add = load_pack(row_of(residual, row, width) + i, count);
#pragma unroll
            for (int j = 0; j < N; j++) pack.at[j] = from_float<T>(to_float(pack.at[j]) + to_float(add.at[j]));
            store_pack(sum + i, count, pack);
        });
        // From here on a thread reads what it has written itself: no barrier.
        source = sum;
    }
    float mean = 0.0f;
    if (CENTRED) {
        float sum = 0.0f;
        for_packs<T, THREADS>(width, [&](int32_t i, int32_t count) {
            const Pack<T> pack = load_pack(source + i, count);
#pragma unroll
            for (int j = 0; j < N; j++) sum += to_float(pack.at[j]);
        });
        mean = block_sum<THREADS>(sum) / width;
    }
    float square = 0.0f;
    for_packs<T, THREADS>(width, [&](int32_t i, int32_t count) {
        const Pack<T> pack = load_pack(source + i, count);
#pragma unroll
        for (int j = 0; j < N; j++) {
            // Beyond the end a pack holds 0, whose distance from the mean doesn't count.
            const float distance = j < count ? to_float(pack.at[j]) - mean : 0.0f;
            square += distance * distance;
        }
    });
    const float rstd = 1.0f / sqrtf(block_sum<THREADS>(square) / width + eps);
    if (is_first_thread()) {
        if (CENTRED) mean_t[row] = mean;
        rstd_t[row] = rstd;
    }
    for_packs<T, THREADS>(width, [&](int32_t i, int32_t count) {
        Pack<T> pack = load_pack(source + i, count);
        const Pack<T> w = load_pack(weight + i, count);
        if (CENTRED) {
            const Pack<T> b = load_pack(bias + i, count);
#pragma unroll
            for (int j = 0; j < N; j++) {
                const float xhat = (to_float(pack.at[j]) - mean) * rstd;
                pack.at[j] = from_float<T>(xhat * to_float(w.at[j]) + to_float(b.at[j]));
            }
        } else {
#pragma unroll
            for (int j = 0; j < N; j++) {
                pack.at[j] = from_float<T>(rounded<T>(to_float(pack.at[j]) * rstd) * to_float(w.at[j]));
            }
        }
        store_pack(row_of(y, row, width) + i, count, pack);
    });
}

// dx [T, width]: the gradient of what was normalised (x here; h behind a residual addition). d_past (it may be null) is
// the gradient that reaches it past the norm, added before the one rounding. dw_partial, db_partial [blocks, width]: the
// sums over the rows_per_block rows of each block, from the first to the last.
//
// Dynamic shared memory holds those sums: 4 bytes for each column, rounded up to whole packs, of dw, then of db. A thread
// keeps to its own columns, so nobody waits for anybody.
template <bool CENTRED, class T>
__device__ __forceinline__ void norm_backward(const T* x, const T* weight, const T* dy, const T* d_past, const float* mean_t,
                                              const float* rstd_t, T* dx, float* dw_partial, float* db_partial, int32_t rows,
                                              int32_t width, int32_t rows_per_block) {
    constexpr int N = PACK<T>;
    // Element j of pack p at [j * packs + p]: neighbouring threads in neighbouring banks.
    const int32_t packs = packs_of<T>(width);
    float* dw = reinterpret_cast<float*>(dyn_smem());
    float* db = dw + packs * N;
    for_packs<T, THREADS>(width, [&](int32_t i, int32_t count) {
#pragma unroll
        for (int j = 0; j < N; j++) {
            dw[j * packs + i / N] = 0.0f;
            if (CENTRED) db[j * packs + i / N] = 0.0f;
        }
    });
    const int64_t first = (int64_t)blockIdx.x * rows_per_block;
    for (int64_t row = first; row < first + rows_per_block && row < rows; row++) {
        const T* of_x = row_of(x, row, width);
        const T* of_dy = row_of(dy, row, width);
        const float mean = CENTRED ? mean_t[row] : 0.0f, rstd = rstd_t[row];
        float sums[1 + CENTRED] = {};
        for_packs<T, THREADS>(width, [&](int32_t i, int32_t count) {
            const Pack<T> px = load_pack(of_x + i, count);
            const Pack<T> pd = load_pack(of_dy + i, count);
            const Pack<T> pw = load_pack(weight + i, count);
#pragma unroll
            for (int j = 0; j < N; j++) {
                const float d = to_float(pd.at[j]), xhat = (to_float(px.at[j]) - mean) * rstd;
                // Rounded, not fused into what follows: g less its own mean cancels.
                const float g = __fmul_rn(d, to_float(pw.at[j]));
                sums[0] += g * xhat;
                dw[j * packs + i / N] += d * xhat;
                if (CENTRED) {
                    sums[CENTRED] += g;
                    db[j * packs + i / N] += d;
                }
            }
        });
        block_sums<THREADS>(sums);
        const float projection = sums[0] / width, centre = CENTRED ? sums[CENTRED] / width : 0.0f;
        for_packs<T, THREADS>(width, [&](int32_t i, int32_t count) {
            Pack<T> pack = load_pack(of_x + i, count);
            const Pack<T> pd = load_pack(of_dy + i, count);
            const Pack<T> pw = load_pack(weight + i, count);
            Pack<T> past = {};
            if (d_past) past = load_pack(row_of(d_past, row, width) + i, count);
#pragma unroll
            for (int j = 0; j < N; j++) {
                const float g = __fmul_rn(to_float(pd.at[j]), to_float(pw.at[j]));
                const float xhat = (to_float(pack.at[j]) - mean) * rstd;
                pack.at[j] = from_float<T>(rstd * (g - centre - xhat * projection) + to_float(past.at[j]));
            }
            store_pack(row_of(dx, row, width) + i, count, pack);
        });
    }
    for_packs<T, THREADS>(width, [&](int32_t i, int32_t count) {
#pragma unroll
        for (int j = 0; j < N; j++) {
            if (j < count) {
                row_of(dw_partial, blockIdx.x, width)[i + j] = dw[j * packs + i / N];
                if (CENTRED) row_of(db_partial, blockIdx.x, width)[i + j] = db[j * packs + i / N];
            }
        }
    });
}

// The second stage: sums [width] of the `count` rows of partial [count, width], in f32, rounded once. A block has 32
// columns; warp w adds the rows w, w + WARPS, ... in order, then the warps' sums are added from the first to the last.
template <class T>
__device__ __forceinline__ void sum_partials(const float* __restrict__ partial, T* __restrict__ sums, int32_t count,
                                             int32_t width) {
    constexpr int WARPS = 8;
    __shared__ float of_warp[WARPS][32];
    const int32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (column < width) {
        for (int32_t row = warp; row < count; row += WARPS) sum += row_of(partial, row, width)[column];
    }
    of_warp[warp][lane] = sum;
    __syncthreads();
    if (threadIdx.x < 32 && column < width) {
        sum = of_warp[0][threadIdx.x];
#pragma unroll
        for (int w = 1; w < WARPS; w++) sum += of_warp[w][threadIdx.x];
        sums[column] = from_float<T>(sum);
    }
}

extern "C" __global__ void __launch_bounds__(128)
rms_norm_forward_bf16(const bf16* x, const bf16* residual, const bf16* weight, bf16* h, bf16* y, float* rstd_t,
                      int32_t width, float eps) {
    norm_forward<false, bf16>(x, residual, weight, nullptr, h, y, nullptr, rstd_t, width, eps);
}
extern "C" __global__ void __launch_bounds__(128)
layer_norm_forward_bf16(const bf16* x, const bf16* residual, const bf16* weight, const bf16* bias, bf16* h, bf16* y,
                        float* mean_t, float* rstd_t, int32_t width, float eps) {
    norm_forward<true>(x, residual, weight, bias, h, y, mean_t, rstd_t, width, eps);
}
extern "C" __global__ void __launch_bounds__(128)
rms_norm_backward_bf16(const bf16* x, const bf16* weight, const bf16* dy, const bf16* d_past, const float* rstd_t,
                       bf16* dx, float* dw_partial, int32_t rows, int32_t width, int32_t rows_per_block) {
    norm_backward<false>(x, weight, dy, d_past, nullptr, rstd_t, dx, dw_partial, nullptr, rows, width, rows_per_block);
}
extern "C" __global__ void __launch_bounds__(128)
layer_norm_backward_bf16(const bf16* x, const bf16* weight, const bf16* dy, const bf16* d_past, const float* mean_t,
                         const float* rstd_t, bf16* dx, float* dw_partial, float* db_partial, int32_t rows,
                         int32_t width, int32_t rows_per_block) {
    norm_backward<true>(x, weight, dy, d_past, mean_t, rstd_t, dx, dw_partial, db_partial, rows, width, rows_per_block);
}
extern "C" __global__ void __launch_bounds__(256)
norm_sum_partials_bf16(const float* __restrict__ partial, bf16* __restrict__ sums, int32_t count, int32_t width) {
    sum_partials(partial, sums, count, width);
}
extern "C" __global__ void __launch_bounds__(128)
rms_norm_forward_f32(const float* x, const float* residual, const float* weight, float* h, float* y, float* rstd_t,
                      int32_t width, float eps) {
    norm_forward<false, float>(x, residual, weight, nullptr, h, y, nullptr, rstd_t, width, eps);
}
extern "C" __global__ void __launch_bounds__(128)
layer_norm_forward_f32(const float* x, const float* residual, const float* weight, const float* bias, float* h, float* y,
                        float* mean_t, float* rstd_t, int32_t width, float eps) {
    norm_forward<true>(x, residual, weight, bias, h, y, mean_t, rstd_t, width, eps);
}
extern "C" __global__ void __launch_bounds__(128)
rms_norm_backward_f32(const float* x, const float* weight, const float* dy, const float* d_past, const float* rstd_t,
                       float* dx, float* dw_partial, int32_t rows, int32_t width, int32_t rows_per_block) {
    norm_backward<false>(x, weight, dy, d_past, nullptr, rstd_t, dx, dw_partial, nullptr, rows, width, rows_per_block);
}
extern "C" __global__ void __launch_bounds__(128)
layer_norm_backward_f32(const float* x, const float* weight, const float* dy, const float* d_past, const float* mean_t,
                         const float* rstd_t, float* dx, float* dw_partial, float* db_partial, int32_t rows,
                         int32_t width, int32_t rows_per_block) {
    norm_backward<true>(x, weight, dy, d_past, mean_t, rstd_t, dx, dw_partial, db_partial, rows, width, rows_per_block);
}
extern "C" __global__ void __launch_bounds__(256)
norm_sum_partials_f32(const float* __restrict__ partial, float* __restrict__ sums, int32_t count, int32_t width) {
    sum_partials(partial, sums, count, width);
}
