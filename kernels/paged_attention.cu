// Decode attention over a cache in pages of 64 tokens: one row per sequence, by the forward pass's own functions, so that its bits
// are those of the same row in training.
//
// The cache is k, v [pages * 64, key_heads, D]. sequences [B, 4]: keys of the prefix, own keys (the row itself is the last of
// them), and where in `pages` the numbers of their pages begin. q, o [B, heads, D]. Grid: [B, key heads, tiles of 16 query heads].
//
// Bounds of (threads, 1) take the compiler off a number of registers, for the sake of more blocks, at which it spills.
#include "attention_bf16.cuh"
#include "attention_f32.cuh"

static __device__ __forceinline__ Queries sequence_queries(int heads, int key_heads) {
    return {(int)blockIdx.x, 1, heads, heads / key_heads, (int)blockIdx.y};
}

static __device__ __forceinline__ Sight<PagedPlace> sequence_sight(const int32_t* sequences, const int32_t* pages) {
    const int32_t* sequence = sequences + blockIdx.x * 4;
    return {sequence[0], sequence[1], false, {pages + sequence[2], pages + sequence[3]}};
}

template <int D>
__device__ __forceinline__ void decode(const bf16* q, const bf16* k, const bf16* v, bf16* o, const int32_t* sequences,
                                       const int32_t* pages, int heads, int key_heads, float scale) {
    attend<D, 1>(q, k, v, o, nullptr, sequence_queries(heads, key_heads), sequence_sight(sequences, pages), blockIdx.z * WARP_ROWS, 0,
                 key_heads, scale);
}

// Rows of keys and values [B, width] into the cache: row b to row slots[b].
template <class T>
__device__ __forceinline__ void store(const T* k, const T* v, T* k_cache, T* v_cache, const int32_t* slots, int width) {
    const int64_t from = blockIdx.x, to = slots[blockIdx.x];
    for (int32_t i = threadIdx.x * PACK<T>; i < width; i += 128 * PACK<T>) {
        store_pack(row_of(k_cache, to, width) + i, width - i, load_pack(row_of(k, from, width) + i, width - i));
        store_pack(row_of(v_cache, to, width) + i, width - i, load_pack(row_of(v, from, width) + i, width - i));
    }
}

extern "C" __global__ void __launch_bounds__(128)
paged_store_bf16(const bf16* k, const bf16* v, bf16* k_cache, bf16* v_cache, const int32_t* slots, int32_t width) {
    store(k, v, k_cache, v_cache, slots, width);
}
extern "C" __global__ void __launch_bounds__(128)
paged_store_f32(const float* k, const float* v, float* k_cache, float* v_cache, const int32_t* slots, int32_t width) {
    store(k, v, k_cache, v_cache, slots, width);
}

extern "C" __global__ void __launch_bounds__(32)
attention_d16_decode_bf16(const bf16* q, const bf16* k, const bf16* v, bf16* o, const int32_t* sequences, const int32_t* pages,
                       int32_t heads, int32_t key_heads, int32_t dim, float scale) {
    decode<16>(q, k, v, o, sequences, pages, heads, key_heads, scale);
}
extern "C" __global__ void __launch_bounds__(32)
attention_d32_decode_bf16(const bf16* q, const bf16* k, const bf16* v, bf16* o, const int32_t* sequences, const int32_t* pages,
                       int32_t heads, int32_t key_heads, int32_t dim, float scale) {
    decode<32>(q, k, v, o, sequences, pages, heads, key_heads, scale);
}
extern "C" __global__ void __launch_bounds__(32)
attention_d48_decode_bf16(const bf16* q, const bf16* k, const bf16* v, bf16* o, const int32_t* sequences, const int32_t* pages,
                       int32_t heads, int32_t key_heads, int32_t dim, float scale) {
    decode<48>(q, k, v, o, sequences, pages, heads, key_heads, scale);
}
extern "C" __global__ void __launch_bounds__(32)
attention_d64_decode_bf16(const bf16* q, const bf16* k, const bf16* v, bf16* o, const int32_t* sequences, const int32_t* pages,
                       int32_t heads, int32_t key_heads, int32_t dim, float scale) {
    decode<64>(q, k, v, o, sequences, pages, heads, key_heads, scale);
}
extern "C" __global__ void __launch_bounds__(32)
attention_d80_decode_bf16(const bf16* q, const bf16* k, const bf16* v, bf16* o, const int32_t* sequences, const int32_t* pages,
                       int32_t heads, int32_t key_heads, int32_t dim, float scale) {
    decode<80>(q, k, v, o, sequences, pages, heads, key_heads, scale);
}
extern "C" __global__ void __launch_bounds__(32)
attention_d96_decode_bf16(const bf16* q, const bf16* k, const bf16* v, bf16* o, const int32_t* sequences, const int32_t* pages,
                       int32_t heads, int32_t key_heads, int32_t dim, float scale) {
    decode<96>(q, k, v, o, sequences, pages, heads, key_heads, scale);
}
extern "C" __global__ void __launch_bounds__(32, 1)
attention_d112_decode_bf16(const bf16* q, const bf16* k, const bf16* v, bf16* o, const int32_t* sequences, const int32_t* pages,
                       int32_t heads, int32_t key_heads, int32_t dim, float scale) {
    decode<112>(q, k, v, o, sequences, pages, heads, key_heads, scale);
}
extern "C" __global__ void __launch_bounds__(32, 1)
attention_d128_decode_bf16(const bf16* q, const bf16* k, const bf16* v, bf16* o, const int32_t* sequences, const int32_t* pages,
                       int32_t heads, int32_t key_heads, int32_t dim, float scale) {
    decode<128>(q, k, v, o, sequences, pages, heads, key_heads, scale);
}

extern "C" __global__ void __launch_bounds__(128)
attention_decode_f32(const float* q, const float* k, const float* v, float* o, const int32_t* sequences, const int32_t* pages,
                     int32_t heads, int32_t key_heads, int32_t dim, float scale) {
    attend(q, k, v, o, nullptr, sequence_queries(heads, key_heads), sequence_sight(sequences, pages), blockIdx.z * BLOCK_ROWS, 0,
           key_heads, dim, scale);
}
