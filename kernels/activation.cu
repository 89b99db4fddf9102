// SwiGLU, QuickGELU and exact GELU: formulas and roundings of src/ops/activation.rs. Memory-bound; a thread has one pack.
#include "common.cuh"

static __device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// y = silu(gate) * up, with silu rounded to T before the product.
template <class T>
__device__ __forceinline__ void swiglu_forward(const T* __restrict__ gate, const T* __restrict__ up, T* __restrict__ y,
                                               int64_t n) {
    const int64_t i = global_thread() * PACK<T>;
    const Pack<T> pg = load_pack(gate + i, n - i);
    const Pack<T> pu = load_pack(up + i, n - i);
    Pack<T> py;
#pragma unroll
    for (int j = 0; j < PACK<T>; j++) {
        const float g = to_float(pg.at[j]);
        py.at[j] = from_float<T>(rounded<T>(g * sigmoid(g)) * to_float(pu.at[j]));
    }
    store_pack(y + i, n - i, py);
}

// dgate = dy up s (1 + g (1 - s)), dup = dy g s.
template <class T>
__device__ __forceinline__ void swiglu_backward(const T* __restrict__ gate, const T* __restrict__ up,
                                                const T* __restrict__ dy, T* __restrict__ d_gate, T* __restrict__ d_up,
                                                int64_t n) {
    const int64_t i = global_thread() * PACK<T>;
    const Pack<T> pg = load_pack(gate + i, n - i);
    const Pack<T> pu = load_pack(up + i, n - i);
    const Pack<T> pd = load_pack(dy + i, n - i);
    Pack<T> dg, du;
#pragma unroll
    for (int j = 0; j < PACK<T>; j++) {
        const float g = to_float(pg.at[j]), d = to_float(pd.at[j]), s = sigmoid(g);
        dg.at[j] = from_float<T>(d * to_float(pu.at[j]) * s * (1.0f + g * (1.0f - s)));
        du.at[j] = from_float<T>(d * g * s);
    }
    store_pack(d_gate + i, n - i, dg);
    store_pack(d_up + i, n - i, du);
}

extern "C" __global__ void __launch_bounds__(256)
swiglu_forward_bf16(const bf16* __restrict__ gate, const bf16* __restrict__ up, bf16* __restrict__ y, int64_t n) {
    swiglu_forward(gate, up, y, n);
}
extern "C" __global__ void __launch_bounds__(256)
swiglu_forward_f32(const float* __restrict__ gate, const float* __restrict__ up, float* __restrict__ y, int64_t n) {
    swiglu_forward(gate, up, y, n);
}
extern "C" __global__ void __launch_bounds__(256)
swiglu_backward_bf16(const bf16* __restrict__ gate, const bf16* __restrict__ up, const bf16* __restrict__ dy,
                     bf16* __restrict__ d_gate, bf16* __restrict__ d_up, int64_t n) {
    swiglu_backward(gate, up, dy, d_gate, d_up, n);
}
extern "C" __global__ void __launch_bounds__(256)
swiglu_backward_f32(const float* __restrict__ gate, const float* __restrict__ up, const float* __restrict__ dy,
                    float* __restrict__ d_gate, float* __restrict__ d_up, int64_t n) {
    swiglu_backward(gate, up, dy, d_gate, d_up, n);
}

struct QuickGelu {
    static __device__ __forceinline__ float value(float x) { return x * sigmoid(1.702f * x); }
    static __device__ __forceinline__ float slope(float x) {
        const float s = sigmoid(1.702f * x);
        return s + 1.702f * x * s * (1.0f - s);
    }
};

struct Gelu {
    // The normal distribution's function; 0.70710678 = sqrt(1/2).
    static __device__ __forceinline__ float cdf(float x) { return 0.5f * (1.0f + erff(x * 0.70710678118654752f)); }
    static __device__ __forceinline__ float value(float x) { return x * cdf(x); }
    // 0.39894228 = 1 / sqrt(2 pi).
    static __device__ __forceinline__ float slope(float x) {
        return cdf(x) + x * (expf(x * x * -0.5f) * 0.39894228040143268f);
    }
};

template <class F, class T>
__device__ __forceinline__ void map_forward(const T* __restrict__ x, T* __restrict__ y, int64_t n) {
    const int64_t i = global_thread() * PACK<T>;
    Pack<T> pack = load_pack(x + i, n - i);
#pragma unroll
    for (int j = 0; j < PACK<T>; j++) pack.at[j] = from_float<T>(F::value(to_float(pack.at[j])));
    store_pack(y + i, n - i, pack);
}

template <class F, class T>
__device__ __forceinline__ void map_backward(const T* __restrict__ x, const T* __restrict__ dy, T* __restrict__ dx,
                                             int64_t n) {
    const int64_t i = global_thread() * PACK<T>;
    Pack<T> pack = load_pack(x + i, n - i);
    const Pack<T> pd = load_pack(dy + i, n - i);
#pragma unroll
    for (int j = 0; j < PACK<T>; j++) {
        pack.at[j] = from_float<T>(to_float(pd.at[j]) * F::slope(to_float(pack.at[j])));
    }
    store_pack(dx + i, n - i, pack);
}

extern "C" __global__ void __launch_bounds__(256)
quick_gelu_forward_bf16(const bf16* __restrict__ x, bf16* __restrict__ y, int64_t n) { map_forward<QuickGelu>(x, y, n); }
extern "C" __global__ void __launch_bounds__(256)
quick_gelu_forward_f32(const float* __restrict__ x, float* __restrict__ y, int64_t n) { map_forward<QuickGelu>(x, y, n); }
extern "C" __global__ void __launch_bounds__(256)
quick_gelu_backward_bf16(const bf16* __restrict__ x, const bf16* __restrict__ dy, bf16* __restrict__ dx, int64_t n) {
    map_backward<QuickGelu>(x, dy, dx, n);
}
extern "C" __global__ void __launch_bounds__(256)
quick_gelu_backward_f32(const float* __restrict__ x, const float* __restrict__ dy, float* __restrict__ dx, int64_t n) {
    map_backward<QuickGelu>(x, dy, dx, n);
}
extern "C" __global__ void __launch_bounds__(256)
gelu_forward_bf16(const bf16* __restrict__ x, bf16* __restrict__ y, int64_t n) { map_forward<Gelu>(x, y, n); }
extern "C" __global__ void __launch_bounds__(256)
gelu_forward_f32(const float* __restrict__ x, float* __restrict__ y, int64_t n) { map_forward<Gelu>(x, y, n); }
extern "C" __global__ void __launch_bounds__(256)
gelu_backward_bf16(const bf16* __restrict__ x, const bf16* __restrict__ dy, bf16* __restrict__ dx, int64_t n) {
    map_backward<Gelu>(x, dy, dx, n);
}
extern "C" __global__ void __launch_bounds__(256)
gelu_backward_f32(const float* __restrict__ x, const float* __restrict__ dy, float* __restrict__ dx, int64_t n) {
    map_backward<Gelu>(x, dy, dx, n);
}
