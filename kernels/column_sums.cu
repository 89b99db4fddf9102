// sums[col] = sum over the rows of x[row, col], in f32: the gradient of a bias row.
//
// Thread (32 * part + c) of a block adds column c of the block's 32, rows part, part + 32, part + 64, ...; then the 32 parts
// are added in a tree. So the order depends on nothing but the number of rows. Grid: [cols / 32 rounded up].
#include "common.cuh"

constexpr int COLUMNS = 32, PARTS = 32;

template <class T>
__device__ __forceinline__ void column_sums(const T* x, T* sums, int rows, int cols) {
    __shared__ float parts[PARTS][COLUMNS];
    const int c = threadIdx.x % COLUMNS, part = threadIdx.x / COLUMNS, col = blockIdx.x * COLUMNS + c;
    float sum = 0.0f;
    if (col < cols) {
        for (int row = part; row < rows; row += PARTS) sum += to_float(x[(int64_t)row * cols + col]);
    }
    parts[part][c] = sum;
    for (int half = PARTS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (part < half) parts[part][c] += parts[part + half][c];
    }
    // Part 0 wrote what it reads here itself.
    if (part == 0 && col < cols) sums[col] = from_float<T>(parts[0][c]);
}

extern "C" __global__ void __launch_bounds__(1024)
column_sums_bf16(const bf16* x, bf16* sums, int32_t rows, int32_t cols) {
    column_sums(x, sums, rows, cols);
}

extern "C" __global__ void __launch_bounds__(1024)
column_sums_f32(const float* x, float* sums, int32_t rows, int32_t cols) {
    column_sums(x, sums, rows, cols);
}
