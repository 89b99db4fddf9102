// Matrix products, C[M, N] = A B: "nt" with A as [M, K] and B as [N, K], "nn" with B as [K, N], "tn" with A as [K, M] and B
// as [K, N]. All row-major, rows `lda`, `ldb`, `ldc` elements apart. `bias[N]` (unless null) and the old C (if `accumulate` is
// not 0) are added to the sums before they are rounded.
//
// bf16 factors go to the tensor cores in one of three shapes of tiles, which give the same bits (gemm.cuh); f32 factors are
// multiplied in f32 (gemm_f32.cuh). Grid: [M / tile rounded up, N / tile rounded up].
#include "gemm_f32.cuh"

template <class S, bool A_INNERMOST, bool B_INNERMOST, class T>
__device__ __forceinline__ void product(const bf16* a, const bf16* b, const bf16* bias, T* c, int m, int n, int k, int lda, int ldb, int ldc, int accumulate) {
    const Matrix factor_a = A_INNERMOST ? Matrix(a, m, k, lda) : Matrix(a, k, m, lda);
    const Matrix factor_b = B_INNERMOST ? Matrix(b, n, k, ldb) : Matrix(b, k, n, ldb);
    const Output<T, bf16> out = {c, m, n, ldc, bias, accumulate != 0};
    multiply_tile<S, A_INNERMOST, B_INNERMOST>(factor_a, factor_b, k, out);
}

template <bool A_INNERMOST, bool B_INNERMOST>
__device__ __forceinline__ void product_f32(const float* a, const float* b, const float* bias, float* c, int m, int n, int k, int lda, int ldb, int ldc, int accumulate) {
    const MatrixF32 factor_a = A_INNERMOST ? MatrixF32{a, m, k, lda} : MatrixF32{a, k, m, lda};
    const MatrixF32 factor_b = B_INNERMOST ? MatrixF32{b, n, k, ldb} : MatrixF32{b, k, n, ldb};
    multiply_tile_f32<A_INNERMOST, B_INNERMOST>(factor_a, factor_b, k, {c, m, n, ldc, bias, accumulate != 0});
}

// bf16 factors, bf16 product.

extern "C" __global__ void __launch_bounds__(256)
gemm_nt_128x128_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Large, true, true>(a, b, bias, c, m, n, k, lda, ldb, ldc, accumulate);
}

extern "C" __global__ void __launch_bounds__(128)
gemm_nt_64x64_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Small, true, true>(a, b, bias, c, m, n, k, lda, ldb, ldc, accumulate);
}

extern "C" __global__ void __launch_bounds__(64)
gemm_nt_16x32_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Skinny, true, true>(a, b, bias, c, m, n, k, lda, ldb, ldc, accumulate);
}

extern "C" __global__ void __launch_bounds__(256)
gemm_nn_128x128_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Large, true, false>(a, b, bias, c, m, n, k, lda, ldb, ldc, accumulate);
}

extern "C" __global__ void __launch_bounds__(128)
gemm_nn_64x64_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Small, true, false>(a, b, bias, c, m, n, k, lda, ldb, ldc, accumulate);
}

extern "C" __global__ void __launch_bounds__(256)
gemm_tn_128x128_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Large, false, false>(a, b, bias, c, m, n, k, lda, ldb, ldc, accumulate);
}

extern "C" __global__ void __launch_bounds__(128)
gemm_tn_64x64_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Small, false, false>(a, b, bias, c, m, n, k, lda, ldb, ldc, accumulate);
}

// bf16 factors, f32 product.

extern "C" __global__ void __launch_bounds__(256)
gemm_nt_128x128_bf16_f32(const bf16* a, const bf16* b, const bf16* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Large, true, true>(a, b, bias, c, m, n, k, lda, ldb, ldc, accumulate);
}

extern "C" __global__ void __launch_bounds__(128)
gemm_nt_64x64_bf16_f32(const bf16* a, const bf16* b, const bf16* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Small, true, true>(a, b, bias, c, m, n, k, lda, ldb, ldc, accumulate);
}

extern "C" __global__ void __launch_bounds__(64)
gemm_nt_16x32_bf16_f32(const bf16* a, const bf16* b, const bf16* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Skinny, true, true>(a, b, bias, c, m, n, k, lda, ldb, ldc, accumulate);
}

extern "C" __global__ void __launch_bounds__(256)
gemm_nn_128x128_bf16_f32(const bf16* a, const bf16* b, const bf16* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Large, true, false>(a, b, bias, c, m, n, k, lda, ldb, ldc, accumulate);
}

extern "C" __global__ void __launch_bounds__(128)
gemm_nn_64x64_bf16_f32(const bf16* a, const bf16* b, const bf16* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Small, true, false>(a, b, bias, c, m, n, k, lda, ldb, ldc, accumulate);
}

extern "C" __global__ void __launch_bounds__(256)
gemm_tn_128x128_bf16_f32(const bf16* a, const bf16* b, const bf16* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Large, false, false>(a, b, bias, c, m, n, k, lda, ldb, ldc, accumulate);
}

extern "C" __global__ void __launch_bounds__(128)
gemm_tn_64x64_bf16_f32(const bf16* a, const bf16* b, const bf16* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Small, false, false>(a, b, bias, c, m, n, k, lda, ldb, ldc, accumulate);
}

// f32 throughout.

extern "C" __global__ void __launch_bounds__(64)
gemm_nt_f32(const float* a, const float* b, const float* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product_f32<true, true>(a, b, bias, c, m, n, k, lda, ldb, ldc, accumulate);
}

extern "C" __global__ void __launch_bounds__(64)
gemm_nn_f32(const float* a, const float* b, const float* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product_f32<true, false>(a, b, bias, c, m, n, k, lda, ldb, ldc, accumulate);
}

extern "C" __global__ void __launch_bounds__(64)
gemm_tn_f32(const float* a, const float* b, const float* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product_f32<false, false>(a, b, bias, c, m, n, k, lda, ldb, ldc, accumulate);
}

// A factor [rows, columns] of a product whose bits tell in which order it was summed. K runs along the rows or the columns. A's
// second half along K is almost the negative of its first, B's second half its first (of an odd length the last number is 0), and
// all exponents differ: what remains of large partial sums is little more than their rounding errors. Every number fits bf16.
template <class T>
__device__ __forceinline__ void fill_factor(T* x, int32_t rows, int32_t columns, int32_t stride, int32_t along_rows, int32_t cancels,
                                            uint32_t seed) {
    const int64_t i = global_thread(), row = i / columns, column = i % columns;
    if (row >= rows) return;
    const uint32_t k = along_rows ? row : column, half = (along_rows ? rows : columns) / 2;
    const bool second = k >= half;
    uint32_t random = seed ^ (uint32_t)(along_rows ? column : row) * 0x9e3779b9u ^ (second ? k - half : k) * 0x85ebca6bu;
    for (int turn = 0; turn < 2; turn++) {
        random ^= random >> 16;
        random *= 0x7feb352du;
    }
    random ^= random >> 15;
    int32_t mantissa = (int32_t)(random % 256) - 128;
    if (cancels && second) mantissa = (int32_t)(random >> 16) % 3 - 1 - mantissa;
    if (k >= 2 * half) mantissa = 0;
    x[row * stride + column] = from_float<T>(ldexpf((float)mantissa, -(int32_t)(random >> 8 & 7)));
}

extern "C" __global__ void __launch_bounds__(256)
fill_factor_bf16(bf16* x, int32_t rows, int32_t columns, int32_t stride, int32_t along_rows, int32_t cancels, uint32_t seed) {
    fill_factor(x, rows, columns, stride, along_rows, cancels, seed);
}
extern "C" __global__ void __launch_bounds__(256)
fill_factor_f32(float* x, int32_t rows, int32_t columns, int32_t stride, int32_t along_rows, int32_t cancels, uint32_t seed) {
    fill_factor(x, rows, columns, stride, along_rows, cancels, seed);
}

// Adds to *count in how many of n words two products differ.
extern "C" __global__ void __launch_bounds__(256)
count_different(const uint32_t* a, const uint32_t* b, uint32_t* count, int64_t n) {
    const int64_t i = global_thread();
    const uint32_t different = __ballot_sync(0xffffffffu, i < n && a[i] != b[i]);
    if (threadIdx.x % 32 == 0 && different) atomicAdd(count, __popc(different));
}
