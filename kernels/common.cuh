// What every kernel is written with: element types and their one rounding, 128-bit loads and stores, sums with one fixed
// order, places in rows. Included by every .cu, and includes the wrappers of instructions (arch.cuh).
//
// The ABI. The build reads each kernel's prototype as text, and generates the typed function that launches it:
//
//     extern "C" __global__ void __launch_bounds__(256)
//     swiglu_forward_bf16(const bf16* gate, const bf16* up, bf16* y, int64_t n) { swiglu_forward(gate, up, y, n); }
//
// - Literal text: no macro makes a kernel, every kernel has launch bounds (the exact number of threads of a block), and
//   its name is <what>_<forward | backward | ...>_<bf16 | f32>, a thin wrapper round a template over the element type.
// - Parameters: `T*` and `const T*` (`__restrict__` allowed where nothing overlaps) with T one of bf16, float, double,
//   uint8_t, int32_t, uint32_t, int64_t, uint64_t; the same types but bf16 and uint8_t as values; and
//   `const __grid_constant__ CUtensorMap`. Dimensions are int32_t; counts and offsets that can pass 2^31 are int64_t.
// - Static `__shared__` for small fixed arrays; dynamic shared memory by dyn_smem() only (arch.cuh).
// - No float atomics, no inline PTX, no cooperative groups. An op's rows don't see each other: no result depends on
//   another row, on the number of rows, or on the size of the grid.
// - Elements are widened to float when loaded, and rounded once, to nearest even, when stored; a rounding in between is
//   written out with `rounded<T>`, and stands in the same place in the op's CPU loop. (Attention in bf16 rounds P and dS, which
//   tensor cores have to; the CPU does not.)
#pragma once
#include "arch.cuh"

typedef __nv_bfloat16 bf16;

static __device__ __forceinline__ float to_float(float x) { return x; }
static __device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }

// To the type of storage: one rounding to nearest even.
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    return __float2bfloat16_rn(x);
}

// The value that storing x as T and loading it again gives.
template <class T>
__device__ __forceinline__ float rounded(float x) {
    return to_float(from_float<T>(x));
}

// Elements of type T in 128 bits: the unit of a thread's loads and stores.
template <class T>
constexpr int PACK = 16 / sizeof(T);

// N neighbouring elements, moved at once where they stand aligned.
template <class T, int N = PACK<T>>
struct alignas(N * sizeof(T)) Pack {
    T at[N];
};

// The first `count` elements from `from` on, at most N of them; the rest is 0. A count below 1 reads nothing.
// One load where the pack is whole and aligned, single elements otherwise: the same values either way.
template <class T, int N = PACK<T>>
__device__ __forceinline__ Pack<T, N> load_pack(const T* from, int64_t count) {
    Pack<T, N> pack;
    if (count >= N && (uintptr_t)from % sizeof(pack) == 0) {
        pack = *reinterpret_cast<const Pack<T, N>*>(from);
    } else {
#pragma unroll
        for (int j = 0; j < N; j++) pack.at[j] = j < count ? from[j] : from_float<T>(0.0f);
    }
    return pack;
}

// Stores the first `count` elements, at most N. A count below 1 writes nothing.
template <class T, int N>
__device__ __forceinline__ void store_pack(T* to, int64_t count, const Pack<T, N>& pack) {
    if (count >= N && (uintptr_t)to % sizeof(pack) == 0) {
        *reinterpret_cast<Pack<T, N>*>(to) = pack;
    } else {
#pragma unroll
        for (int j = 0; j < N; j++) {
            if (j < count) to[j] = pack.at[j];
        }
    }
}

// The number of this thread in the launch, for grids and blocks of one dimension.
static __device__ __forceinline__ int64_t global_thread() {
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

// Row `row` of a matrix of `width` columns.
template <class T>
__device__ __forceinline__ T* row_of(T* matrix, int64_t row, int32_t width) {
    return matrix + row * width;
}

// The packs that `width` elements take, the last of them perhaps not whole.
template <class T>
__device__ __forceinline__ int32_t packs_of(int32_t width) {
    return (width + PACK<T> - 1) / PACK<T>;
}

// This thread's share of a row that a block of THREADS threads has: thread t has the packs t, t + THREADS, ... For each of
// them body(i, count), where i is the pack's first element and `count` is how many there are from there on.
template <class T, int THREADS, class Body>
__device__ __forceinline__ void for_packs(int32_t width, Body body) {
    for (int32_t i = threadIdx.x * PACK<T>; i < width; i += THREADS * PACK<T>) body(i, width - i);
}

// Whether this is the one thread of the block that writes what all of them know.
static __device__ __forceinline__ bool is_first_thread() { return threadIdx.x == 0; }

// The sum over the warp, in every lane: a butterfly, whose additions are the same ones in every lane. All lanes call.
template <class A>
__device__ __forceinline__ A warp_sum(A x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}

// Replaces each of the K numbers by its sum over a block of THREADS threads, in every thread: warps as butterflies, then
// the warps' sums from the first to the last. All threads of the block call. A is float or double.
template <int THREADS, class A, int K>
__device__ __forceinline__ void block_sums(A (&x)[K]) {
    static_assert(THREADS % 32 == 0, "a block is whole warps");
    constexpr int WARPS = THREADS / 32;
    __shared__ A of_warp[K][WARPS];
#pragma unroll
    for (int k = 0; k < K; k++) {
        x[k] = warp_sum(x[k]);
        if (threadIdx.x % 32 == 0) of_warp[k][threadIdx.x / 32] = x[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; k++) {
        x[k] = of_warp[k][0];
#pragma unroll
        for (int warp = 1; warp < WARPS; warp++) x[k] += of_warp[k][warp];
    }
    // The next call writes the array again.
    __syncthreads();
}

// The sum over a block of THREADS threads, in every thread (see block_sums).
template <int THREADS, class A>
__device__ __forceinline__ A block_sum(A x) {
    A sums[1] = {x};
    block_sums<THREADS>(sums);
    return sums[0];
}
