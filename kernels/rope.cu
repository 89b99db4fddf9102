// Rotary embedding, split-half, with the angles of each row from a table: src/ops/rope.rs.
#include "common.cuh"

// cosines, sines [rows, half]: of positions[axis[i], t] * frequencies[i], an f32 product, taken in f64 and rounded, as the CPU's are.
// positions is [axes, rows]. A thread has one angle.
extern "C" __global__ void __launch_bounds__(256)
rope_angles(const int32_t* __restrict__ positions, const int32_t* __restrict__ axis, const float* __restrict__ frequencies,
            float* __restrict__ cosines, float* __restrict__ sines, int64_t rows, int32_t half) {
    const int64_t place = global_thread();
    if (place >= rows * half) return;
    const int64_t row = place / half;
    const int32_t i = int32_t(place % half);
    const double angle = float(positions[axis[i] * rows + row]) * frequencies[i];
    cosines[place] = float(cos(angle));
    sines[place] = float(sin(angle));
}

// Row blockIdx.x of x and y [T, heads * 2 * half]: y_low = x_low cos - x_high sin, y_high = x_high cos + x_low sin, with
// cos, sin [T, half]. direction = 1 turns forth, -1 back. A thread has a pack of pairs (low, high) of one head.
template <class T>
__device__ __forceinline__ void rotate(const T* __restrict__ x, const float* __restrict__ cos, const float* __restrict__ sin,
                                       T* __restrict__ y, int32_t heads, int32_t half, float direction) {
    constexpr int N = PACK<T>;
    const int64_t row = blockIdx.x;
    const int32_t packs = packs_of<T>(half);
    for (int32_t item = threadIdx.x; item < heads * packs; item += blockDim.x) {
        const int32_t i = item % packs * N, count = half - i;
        const int64_t low = (row * heads + item / packs) * 2 * half + i, high = low + half;
        const Pack<float, N> c = load_pack<float, N>(row_of(cos, row, half) + i, count);
        const Pack<float, N> s = load_pack<float, N>(row_of(sin, row, half) + i, count);
        Pack<T> a = load_pack(x + low, count), b = load_pack(x + high, count);
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float p = to_float(a.at[j]), q = to_float(b.at[j]), turn = direction * s.at[j];
            a.at[j] = from_float<T>(p * c.at[j] - q * turn);
            b.at[j] = from_float<T>(q * c.at[j] + p * turn);
        }
        store_pack(y + low, count, a);
        store_pack(y + high, count, b);
    }
}

extern "C" __global__ void __launch_bounds__(128)
rope_forward_bf16(const bf16* __restrict__ x, const float* __restrict__ cos, const float* __restrict__ sin,
                  bf16* __restrict__ y, int32_t heads, int32_t half) {
    rotate(x, cos, sin, y, heads, half, 1.0f);
}
extern "C" __global__ void __launch_bounds__(128)
rope_forward_f32(const float* __restrict__ x, const float* __restrict__ cos, const float* __restrict__ sin,
                 float* __restrict__ y, int32_t heads, int32_t half) {
    rotate(x, cos, sin, y, heads, half, 1.0f);
}
extern "C" __global__ void __launch_bounds__(128)
rope_backward_bf16(const bf16* __restrict__ dy, const float* __restrict__ cos, const float* __restrict__ sin,
                   bf16* __restrict__ dx, int32_t heads, int32_t half) {
    rotate(dy, cos, sin, dx, heads, half, -1.0f);
}
extern "C" __global__ void __launch_bounds__(128)
rope_backward_f32(const float* __restrict__ dy, const float* __restrict__ cos, const float* __restrict__ sin,
                  float* __restrict__ dx, int32_t heads, int32_t half) {
    rotate(dy, cos, sin, dx, heads, half, -1.0f);
}
