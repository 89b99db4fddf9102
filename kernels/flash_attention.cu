// Flash attention, forward: src/ops/attention.rs has formulas and shapes; attention.cuh how rows meet keys.
//
// Grid: [tiles of query rows, key heads]. tiles [*, 2]: a segment and its first packed row; segments [*, 4]: see SEGMENT.
// q, o [rows, heads, D]; k, v [rows, key_heads, D]; lse [heads, rows]; scale is log2(e) / sqrt(D). In bf16 a kernel has its D;
// the f32 kernel reads it from dim.
//
// Bounds of (threads, 1) take the compiler off a number of registers, for the sake of more blocks, at which it spills.
#include "attention_bf16.cuh"
#include "attention_f32.cuh"

template <int D>
__device__ __forceinline__ void forward(const bf16* q, const bf16* k, const bf16* v, bf16* o, float* lse, const int32_t* segments,
                                        const int32_t* tiles, int rows, int heads, int key_heads, int causal, float scale) {
    const int32_t* tile = tiles + blockIdx.x * 2;
    attend<D, 4>(q, k, v, o, lse, segment_queries(segments, tile[0], heads, key_heads), segment_sight(segments, tile[0], causal),
                 tile[1], rows, key_heads, scale);
}

extern "C" __global__ void __launch_bounds__(128)
attention_d16_forward_bf16(const bf16* q, const bf16* k, const bf16* v, bf16* o, float* lse, const int32_t* segments,
                        const int32_t* tiles, int32_t rows, int32_t heads, int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    forward<16>(q, k, v, o, lse, segments, tiles, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d32_forward_bf16(const bf16* q, const bf16* k, const bf16* v, bf16* o, float* lse, const int32_t* segments,
                        const int32_t* tiles, int32_t rows, int32_t heads, int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    forward<32>(q, k, v, o, lse, segments, tiles, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128, 1)
attention_d48_forward_bf16(const bf16* q, const bf16* k, const bf16* v, bf16* o, float* lse, const int32_t* segments,
                        const int32_t* tiles, int32_t rows, int32_t heads, int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    forward<48>(q, k, v, o, lse, segments, tiles, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d64_forward_bf16(const bf16* q, const bf16* k, const bf16* v, bf16* o, float* lse, const int32_t* segments,
                        const int32_t* tiles, int32_t rows, int32_t heads, int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    forward<64>(q, k, v, o, lse, segments, tiles, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d80_forward_bf16(const bf16* q, const bf16* k, const bf16* v, bf16* o, float* lse, const int32_t* segments,
                        const int32_t* tiles, int32_t rows, int32_t heads, int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    forward<80>(q, k, v, o, lse, segments, tiles, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d96_forward_bf16(const bf16* q, const bf16* k, const bf16* v, bf16* o, float* lse, const int32_t* segments,
                        const int32_t* tiles, int32_t rows, int32_t heads, int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    forward<96>(q, k, v, o, lse, segments, tiles, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d112_forward_bf16(const bf16* q, const bf16* k, const bf16* v, bf16* o, float* lse, const int32_t* segments,
                        const int32_t* tiles, int32_t rows, int32_t heads, int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    forward<112>(q, k, v, o, lse, segments, tiles, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d128_forward_bf16(const bf16* q, const bf16* k, const bf16* v, bf16* o, float* lse, const int32_t* segments,
                        const int32_t* tiles, int32_t rows, int32_t heads, int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    forward<128>(q, k, v, o, lse, segments, tiles, rows, heads, key_heads, causal, scale);
}

extern "C" __global__ void __launch_bounds__(128)
attention_forward_f32(const float* q, const float* k, const float* v, float* o, float* lse, const int32_t* segments,
                      const int32_t* tiles, int32_t rows, int32_t heads, int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    const int32_t* tile = tiles + blockIdx.x * 2;
    attend(q, k, v, o, lse, segment_queries(segments, tile[0], heads, key_heads), segment_sight(segments, tile[0], causal), tile[1],
           rows, key_heads, dim, scale);
}
