// Element-by-element sums.
#include "common.cuh"

// a += b, for gradients that meet.
template <class T>
__device__ void accumulate(T* a, const T* b, int64_t n) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
        a[i] = from_float<T>(to_float(a[i]) + to_float(b[i]));
}

extern "C" __global__ void __launch_bounds__(256)
accumulate_f32(float* a, const float* b, int64_t n) { accumulate(a, b, n); }

extern "C" __global__ void __launch_bounds__(256)
accumulate_bf16(bf16* a, const bf16* b, int64_t n) { accumulate(a, b, n); }
