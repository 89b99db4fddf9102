// Sums, casts and columns: src/ops/elementwise.rs. Memory-bound; a thread has one pack of elements.
#include "common.cuh"

// y = a + b; y may be a.
template <class T>
__device__ __forceinline__ void add(const T* a, const T* b, T* y, int64_t n) {
    const int64_t i = global_thread() * PACK<T>;
    Pack<T> pa = load_pack(a + i, n - i);
    const Pack<T> pb = load_pack(b + i, n - i);
#pragma unroll
    for (int j = 0; j < PACK<T>; j++) pa.at[j] = from_float<T>(to_float(pa.at[j]) + to_float(pb.at[j]));
    store_pack(y + i, n - i, pa);
}

extern "C" __global__ void __launch_bounds__(256)
add_forward_bf16(const bf16* a, const bf16* b, bf16* y, int64_t n) { add(a, b, y, n); }
extern "C" __global__ void __launch_bounds__(256)
add_forward_f32(const float* a, const float* b, float* y, int64_t n) { add(a, b, y, n); }

// Elements a thread has where two types meet: 128 bits of the narrow one.
constexpr int MIXED = PACK<bf16>;

// y = x, rounded to nearest even where Y is narrower.
template <class X, class Y>
__device__ __forceinline__ void cast(const X* __restrict__ x, Y* __restrict__ y, int64_t n) {
    const int64_t i = global_thread() * MIXED;
    const Pack<X, MIXED> from = load_pack<X, MIXED>(x + i, n - i);
    Pack<Y, MIXED> to;
#pragma unroll
    for (int j = 0; j < MIXED; j++) to.at[j] = from_float<Y>(to_float(from.at[j]));
    store_pack(y + i, n - i, to);
}

extern "C" __global__ void __launch_bounds__(256)
cast_to_bf16(const float* __restrict__ x, bf16* __restrict__ y, int64_t n) { cast(x, y, n); }
extern "C" __global__ void __launch_bounds__(256)
cast_to_f32(const bf16* __restrict__ x, float* __restrict__ y, int64_t n) { cast(x, y, n); }

// sum += x in f32: gradients of micro-batches.
template <class T>
__device__ __forceinline__ void accumulate(float* __restrict__ sum, const T* __restrict__ x, int64_t n) {
    const int64_t i = global_thread() * MIXED;
    Pack<float, MIXED> to = load_pack<float, MIXED>(sum + i, n - i);
    const Pack<T, MIXED> from = load_pack<T, MIXED>(x + i, n - i);
#pragma unroll
    for (int j = 0; j < MIXED; j++) to.at[j] += to_float(from.at[j]);
    store_pack(sum + i, n - i, to);
}

extern "C" __global__ void __launch_bounds__(256)
accumulate_bf16(float* __restrict__ sum, const bf16* __restrict__ x, int64_t n) { accumulate(sum, x, n); }
extern "C" __global__ void __launch_bounds__(256)
accumulate_f32(float* __restrict__ sum, const float* __restrict__ x, int64_t n) { accumulate(sum, x, n); }

// Copies `width` columns between matrices of x_width and y_width columns; x and y stand at the first column that moves.
// A block per row. One part out of a fused projection, and its gradient back into its place.
template <class T>
__device__ __forceinline__ void columns(const T* __restrict__ x, T* __restrict__ y, int32_t x_width, int32_t y_width,
                                        int32_t width) {
    const T* from = row_of(x, blockIdx.x, x_width);
    T* to = row_of(y, blockIdx.x, y_width);
    for_packs<T, 128>(width, [&](int32_t i, int32_t count) { store_pack(to + i, count, load_pack(from + i, count)); });
}

extern "C" __global__ void __launch_bounds__(128)
columns_forward_bf16(const bf16* __restrict__ x, bf16* __restrict__ y, int32_t x_width, int32_t y_width, int32_t width) {
    columns(x, y, x_width, y_width, width);
}
extern "C" __global__ void __launch_bounds__(128)
columns_forward_f32(const float* __restrict__ x, float* __restrict__ y, int32_t x_width, int32_t y_width, int32_t width) {
    columns(x, y, x_width, y_width, width);
}
