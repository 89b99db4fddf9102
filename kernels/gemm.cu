// Matrix products, C[M, N] = A B: "nt" with A as [M, K] and B as [N, K], "nn" with B as [K, N], "tn" with A as [K, M] and B
// as [K, N]. All row-major, rows `lda`, `ldb`, `ldc` elements apart. The bf16 factors go to the tensor cores in one of
// three shapes of tiles that give the same bits (gemm.cuh); f32 factors are multiplied in f32 (gemm_f32.cuh).
//
// Grid: [M / tile rounded up, N / tile rounded up].
#include "gemm.cuh"
#include "gemm_f32.cuh"

template <class S, bool A_INNERMOST, bool B_INNERMOST, class T>
__device__ __forceinline__ void product(const bf16* a, const bf16* b, const Output<T, bf16>& c, int k, int lda, int ldb) {
    const Matrix matrix_a = A_INNERMOST ? Matrix(a, c.rows, k, lda) : Matrix(a, k, c.rows, lda);
    const Matrix matrix_b = B_INNERMOST ? Matrix(b, c.cols, k, ldb) : Matrix(b, k, c.cols, ldb);
    const int m = blockIdx.x * S::M, n = blockIdx.y * S::N;
    Sums<S> sums;
    multiply<S, A_INNERMOST, B_INNERMOST>(sums, matrix_a, matrix_b, m, n, k, (bf16*)dyn_smem());
    c.template store<S>(sums, m, n);
}

// bf16 out, with a bias row unless it is null.

extern "C" __global__ void __launch_bounds__(256)
gemm_nt_128x128_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc) {
    product<Large, true, true, bf16>(a, b, {c, m, n, ldc, bias, false}, k, lda, ldb);
}
extern "C" __global__ void __launch_bounds__(128)
gemm_nt_64x64_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc) {
    product<Small, true, true, bf16>(a, b, {c, m, n, ldc, bias, false}, k, lda, ldb);
}
extern "C" __global__ void __launch_bounds__(64)
gemm_nt_16x32_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc) {
    product<Skinny, true, true, bf16>(a, b, {c, m, n, ldc, bias, false}, k, lda, ldb);
}
extern "C" __global__ void __launch_bounds__(256)
gemm_nn_128x128_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc) {
    product<Large, true, false, bf16>(a, b, {c, m, n, ldc, bias, false}, k, lda, ldb);
}
extern "C" __global__ void __launch_bounds__(128)
gemm_nn_64x64_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc) {
    product<Small, true, false, bf16>(a, b, {c, m, n, ldc, bias, false}, k, lda, ldb);
}
extern "C" __global__ void __launch_bounds__(256)
gemm_tn_128x128_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc) {
    product<Large, false, false, bf16>(a, b, {c, m, n, ldc, bias, false}, k, lda, ldb);
}
extern "C" __global__ void __launch_bounds__(128)
gemm_tn_64x64_bf16(const bf16* a, const bf16* b, const bf16* bias, bf16* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc) {
    product<Small, false, false, bf16>(a, b, {c, m, n, ldc, bias, false}, k, lda, ldb);
}

// f32 out, added to the old C if `accumulate` is not 0.

extern "C" __global__ void __launch_bounds__(256)
gemm_nt_128x128_bf16_f32(const bf16* a, const bf16* b, const bf16* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Large, true, true, float>(a, b, {c, m, n, ldc, bias, accumulate != 0}, k, lda, ldb);
}
extern "C" __global__ void __launch_bounds__(128)
gemm_nt_64x64_bf16_f32(const bf16* a, const bf16* b, const bf16* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Small, true, true, float>(a, b, {c, m, n, ldc, bias, accumulate != 0}, k, lda, ldb);
}
extern "C" __global__ void __launch_bounds__(64)
gemm_nt_16x32_bf16_f32(const bf16* a, const bf16* b, const bf16* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Skinny, true, true, float>(a, b, {c, m, n, ldc, bias, accumulate != 0}, k, lda, ldb);
}
extern "C" __global__ void __launch_bounds__(256)
gemm_nn_128x128_bf16_f32(const bf16* a, const bf16* b, const bf16* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Large, true, false, float>(a, b, {c, m, n, ldc, bias, accumulate != 0}, k, lda, ldb);
}
extern "C" __global__ void __launch_bounds__(128)
gemm_nn_64x64_bf16_f32(const bf16* a, const bf16* b, const bf16* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Small, true, false, float>(a, b, {c, m, n, ldc, bias, accumulate != 0}, k, lda, ldb);
}
extern "C" __global__ void __launch_bounds__(256)
gemm_tn_128x128_bf16_f32(const bf16* a, const bf16* b, const bf16* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Large, false, false, float>(a, b, {c, m, n, ldc, bias, accumulate != 0}, k, lda, ldb);
}
extern "C" __global__ void __launch_bounds__(128)
gemm_tn_64x64_bf16_f32(const bf16* a, const bf16* b, const bf16* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product<Small, false, false, float>(a, b, {c, m, n, ldc, bias, accumulate != 0}, k, lda, ldb);
}

// f32 throughout.

extern "C" __global__ void __launch_bounds__(64)
gemm_nt_f32(const float* a, const float* b, const float* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product_f32<true, true>(PlainMatrix{a, m, k, lda}, PlainMatrix{b, n, k, ldb}, k, {c, m, n, ldc, bias, accumulate != 0});
}
extern "C" __global__ void __launch_bounds__(64)
gemm_nn_f32(const float* a, const float* b, const float* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product_f32<true, false>(PlainMatrix{a, m, k, lda}, PlainMatrix{b, k, n, ldb}, k, {c, m, n, ldc, bias, accumulate != 0});
}
extern "C" __global__ void __launch_bounds__(64)
gemm_tn_f32(const float* a, const float* b, const float* bias, float* c, int32_t m, int32_t n, int32_t k, int32_t lda, int32_t ldb, int32_t ldc, int32_t accumulate) {
    product_f32<false, false>(PlainMatrix{a, k, m, lda}, PlainMatrix{b, k, n, ldb}, k, {c, m, n, ldc, bias, accumulate != 0});
}
