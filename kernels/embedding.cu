// Token embedding with the images' features spliced in: src/ops/embedding.rs.
#include "common.cuh"

constexpr int THREADS = 128;

// Row blockIdx.x of y [T, width] = table[source] where source >= 0, else image[-1 - source].
template <class T>
__device__ __forceinline__ void gather(const T* __restrict__ table, const T* __restrict__ image,
                                       const int32_t* __restrict__ source, T* __restrict__ y, int32_t width) {
    const int32_t row = source[blockIdx.x];
    const T* from = row >= 0 ? row_of(table, row, width) : row_of(image, -1 - row, width);
    T* to = row_of(y, blockIdx.x, width);
    for_packs<T, THREADS>(width, [&](int32_t i, int32_t count) { store_pack(to + i, count, load_pack(from + i, count)); });
}

// Segment k = blockIdx.x: d_table[tokens[k]] = the sum of dy[rows[s]] for s from starts[k] to starts[k+1], in this order,
// in f32, rounded once. Blocks of one segment differ in columns (blockIdx.y). Tokens that don't occur aren't touched.
template <class T>
__device__ __forceinline__ void scatter(const T* __restrict__ dy, const int32_t* __restrict__ tokens,
                                        const int32_t* __restrict__ starts, const int32_t* __restrict__ rows,
                                        T* __restrict__ d_table, int32_t width) {
    const int32_t i = (blockIdx.y * THREADS + threadIdx.x) * PACK<T>;
    float sum[PACK<T>] = {};
    for (int32_t s = starts[blockIdx.x]; s < starts[blockIdx.x + 1]; s++) {
        const Pack<T> pack = load_pack(row_of(dy, rows[s], width) + i, width - i);
#pragma unroll
        for (int j = 0; j < PACK<T>; j++) sum[j] += to_float(pack.at[j]);
    }
    Pack<T> pack;
#pragma unroll
    for (int j = 0; j < PACK<T>; j++) pack.at[j] = from_float<T>(sum[j]);
    store_pack(row_of(d_table, tokens[blockIdx.x], width) + i, width - i, pack);
}

extern "C" __global__ void __launch_bounds__(128)
embedding_forward_bf16(const bf16* __restrict__ table, const bf16* __restrict__ image, const int32_t* __restrict__ source,
                       bf16* __restrict__ y, int32_t width) {
    gather(table, image, source, y, width);
}
extern "C" __global__ void __launch_bounds__(128)
embedding_forward_f32(const float* __restrict__ table, const float* __restrict__ image, const int32_t* __restrict__ source,
                      float* __restrict__ y, int32_t width) {
    gather(table, image, source, y, width);
}
extern "C" __global__ void __launch_bounds__(128)
embedding_backward_bf16(const bf16* __restrict__ dy, const int32_t* __restrict__ tokens, const int32_t* __restrict__ starts,
                        const int32_t* __restrict__ rows, bf16* __restrict__ d_table, int32_t width) {
    scatter(dy, tokens, starts, rows, d_table, width);
}
extern "C" __global__ void __launch_bounds__(128)
embedding_backward_f32(const float* __restrict__ dy, const int32_t* __restrict__ tokens, const int32_t* __restrict__ starts,
                       const int32_t* __restrict__ rows, float* __restrict__ d_table, int32_t width) {
    scatter(dy, tokens, starts, rows, d_table, width);
}
