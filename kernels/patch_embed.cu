// Patch embedding: y[N, C] = xhat[N, width] W[C, width]^T and dW[C, width] = dy[N, C]^T xhat, where xhat is never stored: it
// is made of the patches' bytes while their tiles are loaded, as levels[channel][byte] rounded to the dtype, the three
// channels each taking a third of a row.
//
// Grid: as in gemm.cu, for C = y and for C = dW.
#include "gemm_f32.cuh"

constexpr int LEVELS = 3 * 256;

// What load_pack puts where there are no bytes.
template <>
__device__ __forceinline__ uint8_t from_float<uint8_t>(float x) {
    return (uint8_t)x;
}

// The normalised pixels: a row-major matrix of rows x cols, whose element is found by its byte.
template <class T>
struct Pixels {
    const uint8_t* bytes;
    const T* levels;
    int rows, cols;

    __device__ __forceinline__ T level(int col, uint8_t byte) const {
        const int third = cols / 3, channel = (col >= third) + (col >= 2 * third);
        return levels[channel * 256 + byte];
    }

    // As MatrixF32.
    __device__ __forceinline__ float at(int row, int col) const {
        return row < rows && col < cols ? level(col, bytes[(int64_t)row * cols + col]) : 0.0f;
    }

    // As Matrix, but outside of the matrix are levels of byte 0: finite numbers, of which the other factor's 0 leaves nothing.
    __device__ __forceinline__ void load8(T* to, int row, int col) const {
        const int inside = row < rows ? cols - col : 0;
        const Pack<uint8_t, 8> from = load_pack<uint8_t, 8>(bytes + (int64_t)row * cols + col, inside);
        Pack<T, 8> pack;
#pragma unroll
        for (int i = 0; i < 8; i++) pack.at[i] = level(col + i, from.at[i]);
        *reinterpret_cast<Pack<T, 8>*>(to) = pack;
    }
};

// The table of levels, rounded, into shared memory.
__device__ __forceinline__ const bf16* round_levels(const float* levels) {
    __shared__ bf16 table[LEVELS];
    for (int i = threadIdx.x; i < LEVELS; i += Large::THREADS) table[i] = from_float<bf16>(levels[i]);
    __syncthreads();
    return table;
}

extern "C" __global__ void __launch_bounds__(256)
patch_embed_forward_bf16(const uint8_t* bytes, const float* levels, const bf16* weight, bf16* y, int32_t patches, int32_t channels, int32_t width) {
    const Pixels<bf16> pixels = {bytes, round_levels(levels), patches, width};
    const Output<bf16, bf16> out = {y, patches, channels, channels, nullptr, false};
    multiply_tile<Large, true, true>(pixels, Matrix(weight, channels, width, width), width, out);
}

extern "C" __global__ void __launch_bounds__(256)
patch_embed_backward_bf16(const uint8_t* bytes, const float* levels, const bf16* dy, bf16* dw, int32_t patches, int32_t channels, int32_t width) {
    const Pixels<bf16> pixels = {bytes, round_levels(levels), patches, width};
    const Output<bf16, bf16> out = {dw, channels, width, width, nullptr, false};
    multiply_tile<Large, false, false>(Matrix(dy, patches, channels, channels), pixels, patches, out);
}

extern "C" __global__ void __launch_bounds__(64)
patch_embed_forward_f32(const uint8_t* bytes, const float* levels, const float* weight, float* y, int32_t patches, int32_t channels, int32_t width) {
    const Pixels<float> pixels = {bytes, levels, patches, width};
    const MatrixF32 factor = {weight, channels, width, width};
    multiply_tile_f32<true, true>(pixels, factor, width, {y, patches, channels, channels, nullptr, false});
}

extern "C" __global__ void __launch_bounds__(64)
patch_embed_backward_f32(const uint8_t* bytes, const float* levels, const float* dy, float* dw, int32_t patches, int32_t channels, int32_t width) {
    const Pixels<float> pixels = {bytes, levels, patches, width};
    const MatrixF32 factor = {dy, patches, channels, channels};
    multiply_tile_f32<false, false>(factor, pixels, patches, {dw, channels, width, width, nullptr, false});
}
