// Attention in bf16 on the tensor cores: tiles in shared memory, products of a warp's 16 rows with them, the forward pass.
//
// Scores and outputs are chains of mma.m16n8k16 over the head's elements and over the keys in ascending order; softmax is
// f32, its weights are rounded to bf16 for the product with v.
#pragma once
#include "attention.cuh"

// Rows of a warp.
constexpr int WARP_ROWS = 16;

// Elements between the starts of two rows in shared memory: 16 bytes more than a row, so that the 8 rows of an ldmatrix
// lie in different banks for every D, a multiple of 16.
template <int D>
constexpr int PITCH = D + 8;

// Copies `count` rows, at most ROWS, of D elements to shared memory, and zeros for the rest of ROWS. Rows of `from` begin
// `stride` elements apart. There after cp_async_wait and a barrier.
template <int D, int ROWS, int THREADS>
__device__ __forceinline__ void load_tile(bf16* tile, const bf16* from, int64_t stride, int count) {
    constexpr int CHUNKS = D / 8;
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        cp_async16(smem_u32(tile + row * PITCH<D> + chunk * 8), from + row * stride + chunk * 8, row < count ? 16 : 0);
    }
}

static __device__ __forceinline__ uint32_t pair_bits(float low, float high) {
    const Pack<bf16, 2> pair = {from_float<bf16>(low), from_float<bf16>(high)};
    uint32_t bits;
    memcpy(&bits, &pair, sizeof(bits));
    return bits;
}

static __device__ __forceinline__ Pack<bf16, 2> pair_of(uint32_t bits) {
    Pack<bf16, 2> pair;
    memcpy(&pair, &bits, sizeof(pair));
    return pair;
}

// This lane's part of a 16-row factor A [16, D] in global memory; `rows` are its two rows, g and g + 8.
template <int D>
__device__ __forceinline__ void load_rows(uint32_t (&a)[D / 16][4], const bf16* const (&rows)[2]) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int k = 0; k < D / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            a[k][i] = *reinterpret_cast<const uint32_t*>(rows[i % 2] + k * 16 + i / 2 * 8 + column);
        }
}

// d[16, 16 * NT] += a[16, 16] B with B[k, n] = tile[row + n][column + k].
template <int D, int NT>
__device__ __forceinline__ void multiply_rows(float (*d)[4], const uint32_t (&a)[4], const bf16* tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    uint32_t at[NT];
#pragma unroll
    for (int n = 0; n < NT; n++) {
        at[n] = smem_u32(tile + (row + n * 16 + lane % 8 + lane / 16 * 8) * PITCH<D> + column + lane / 8 % 2 * 8);
    }
    mma_ldmatrix<NT, false>(d, a, at);
}

// d[16, D] += a[16, 16] B with B[k, n] = tile[row + k][n].
template <int D>
__device__ __forceinline__ void multiply_columns(float (*d)[4], const uint32_t (&a)[4], const bf16* tile, int row) {
    const int lane = threadIdx.x % 32;
    uint32_t at[D / 16];
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
        at[n] = smem_u32(tile + (row + lane % 16) * PITCH<D> + n * 16 + lane / 16 * 8);
    }
    mma_ldmatrix<D / 16, true>(d, a, at);
}

// Columns 16 * k and following of a product [16, *], rounded, as the factor A of the next.
static __device__ __forceinline__ void as_factor(uint32_t (&a)[4], const float (*product)[4], int k) {
    const float(*d)[4] = product + 2 * k;
    a[0] = pair_bits(d[0][0], d[0][1]);
    a[1] = pair_bits(d[0][2], d[0][3]);
    a[2] = pair_bits(d[1][0], d[1][1]);
    a[3] = pair_bits(d[1][2], d[1][3]);
}

template <int N>
__device__ __forceinline__ void clear(float (&d)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) d[n][i] = 0.0f;
}

// Stores one row's elements of a product [16, D], times `factor`. half: 0 for row g, 1 for row g + 8.
template <int D>
__device__ __forceinline__ void store_row(bf16* row, const float (&d)[D / 8][4], int half, float factor) {
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        const Pack<bf16, 2> pair = {from_float<bf16>(d[n][2 * half] * factor), from_float<bf16>(d[n][2 * half + 1] * factor)};
        *reinterpret_cast<Pack<bf16, 2>*>(row + n * 8 + threadIdx.x % 4 * 2) = pair;
    }
}

// The two rows of a product that this lane has part of, as packed rows: those beyond the last one repeat it, and are not stored.
struct LaneRows {
    int row[2];
    bool is_there[2];

    __device__ __forceinline__ LaneRows(int first, int count) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int at = first + threadIdx.x / 32 * WARP_ROWS + threadIdx.x % 32 / 4 + half * 8;
            is_there[half] = at < count;
            row[half] = min(at, count - 1);
        }
    }
};

// Shared memory of a block that streams tiles of keys and values: two of each.
template <int D>
struct KeyStream {
    static constexpr int TILE = KEYS * PITCH<D>;
    bf16* memory;
    const bf16 *k, *v;
    int64_t stride;

    // k and v are [*, key_heads, D].
    __device__ __forceinline__ KeyStream(const bf16* k, const bf16* v, int key_heads, int key_head)
        : memory((bf16*)dyn_smem()), k(k + key_head * D), v(v + key_head * D), stride(key_heads * D) {}

    template <int THREADS>
    __device__ __forceinline__ void load(int i, const KeyTile& tile) const {
        const int64_t at = tile.row * stride;
        load_tile<D, KEYS, THREADS>(keys(i), k + at, stride, tile.count);
        load_tile<D, KEYS, THREADS>(values(i), v + at, stride, tile.count);
        cp_async_commit();
    }

    __device__ __forceinline__ bf16* keys(int i) const { return memory + i % 2 * 2 * TILE; }
    __device__ __forceinline__ bf16* values(int i) const { return keys(i) + TILE; }
};

// Runs body(i, tile) for tiles 0 to count - 1, the next tile on its way meanwhile. All threads of the block call.
template <int D, int THREADS, class Place, class Body>
__device__ __forceinline__ void for_tiles(const KeyStream<D>& stream, const Sight<Place>& sight, int count, Body body) {
    stream.template load<THREADS>(0, sight.tile(0));
    for (int i = 0; i < count; i++) {
        // The tile is there, and all have done with the one before, whose place the next takes.
        cp_async_wait<0>();
        __syncthreads();
        if (i + 1 < count) stream.template load<THREADS>(i + 1, sight.tile(i + 1));
        body(i, sight.tile(i));
    }
}

// The softmax of a row so far, in base 2: the largest exponent, and this lane's part of the sum of 2^(exponent - top).
struct Softmax {
    float top, sum;
};

// Turns a tile's scores of row g + 8 * half into weights; gives the factor that former sums have to be multiplied by.
// Every row sees a key of its first tile, so `top` is finite from then on; a tile of hidden keys changes nothing.
static __device__ __forceinline__ float weigh(Softmax& row, float (&s)[KEYS / 8][4], int half, float scale) {
    float top = s[0][2 * half];
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    const float before = row.top;
    row.top = fmaxf(before, top * scale);
    const float keep = exp2_approx(before - row.top);
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int j = 2 * half; j < 2 * half + 2; j++) {
            s[n][j] = exp2_approx(__fmaf_rn(s[n][j], scale, -row.top));
            sum += s[n][j];
        }
    row.sum = __fmaf_rn(row.sum, keep, sum);
    return keep;
}

// o for the packed rows from `first` on, 16 for each warp, and unless it is null lse [heads, rows]: the base-2 logarithm of
// the row's sum of 2^(scale q k). scale is log2(e) / sqrt(D). Shared memory: 4 tiles.
template <int D, int WARPS, class Place>
__device__ __forceinline__ void attend(const bf16* q, const bf16* k, const bf16* v, bf16* o, float* lse, const Queries& queries,
                                       const Sight<Place>& sight, int first, int rows, int key_heads, float scale) {
    const LaneRows mine(first, queries.count());
    uint32_t fq[D / 16][4];
    load_rows<D>(fq, {q + queries.vector(mine.row[0], D), q + queries.vector(mine.row[1], D)});
    const int hidden[2] = {sight.hidden(queries.token(mine.row[0])), sight.hidden(queries.token(mine.row[1]))};

    float sums[D / 8][4];
    clear(sums);
    Softmax softmax[2] = {{-INFINITY, 0.0f}, {-INFINITY, 0.0f}};
    const int last = min(first + WARPS * WARP_ROWS, queries.count()) - 1;
    const KeyStream<D> stream(k, v, key_heads, queries.key_head);
    for_tiles<D, WARPS * 32>(stream, sight, sight.tiles(queries.token(last)), [&](int i, const KeyTile& tile) {
        float s[KEYS / 8][4];
        clear(s);
#pragma unroll
        for (int c = 0; c < D / 16; c++) multiply_rows<D, KEYS / 16>(s, fq[c], stream.keys(i), 0, c * 16);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int visible = tile.visible(hidden[half]);
            if (visible < KEYS) {
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        if (n * 8 + (int)threadIdx.x % 4 * 2 + j >= visible) s[n][2 * half + j] = -INFINITY;
                    }
            }
            const float keep = weigh(softmax[half], s, half, scale);
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                sums[n][2 * half] *= keep;
                sums[n][2 * half + 1] *= keep;
            }
        }
#pragma unroll
        for (int c = 0; c < KEYS / 16; c++) {
            uint32_t p[4];
            as_factor(p, s, c);
            multiply_columns<D>(sums, p, stream.values(i), c * 16);
        }
    });
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = softmax[half].sum;
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (mine.is_there[half]) {
            store_row<D>(o + queries.vector(mine.row[half], D), sums, half, 1.0f / sum);
            if (lse && threadIdx.x % 4 == 0) lse[queries.statistic(mine.row[half], rows)] = softmax[half].top + log2f(sum);
        }
    }
}
