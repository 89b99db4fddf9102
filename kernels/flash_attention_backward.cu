// Flash attention, backward: src/ops/attention.rs has the formulas, attention.cuh how rows meet keys.
//
// Two kernels, each of which sums in registers, in a fixed order: that of dq streams the keys past tiles of query rows, that of dk
// and dv the query rows past tiles of keys. Both compute P = 2^(scale q k - lse) again. The first also writes what the second reads:
// delta = do o of each row.
//
// Shapes as in flash_attention.cu; dout, dq like q; dk, dv like k; delta like lse. Grid of dq: as there. Grid of dk, dv: [tiles of 64
// keys, key heads, blocks of a tile (1 in bf16, 4 in f32)], tiles [*, 4]: a segment, its first key of the tile, and where in `viewers`
// the segments begin and end that see it, itself first.
//
// Bounds of (threads, 1) take the compiler off a number of registers, for the sake of more blocks, at which it spills.
#include "attention_bf16.cuh"
#include "attention_f32.cuh"

// scale * LN_2 = 1 / sqrt(D).
constexpr float LN_2 = 0.693147181f;

// The query rows that see keys from `first_key` of a segment on, a step at a time. Causally, no row of the segment itself before
// that key does.
struct Viewers {
    const int32_t *segments, *at, *end;
    int heads, key_heads, first_key;
    bool is_own, causal;
    Queries queries;
    int row;

    __device__ __forceinline__ Viewers(const int32_t* segments, const int32_t* tile, const int32_t* viewers, int first_key, int heads,
                                       int key_heads, bool causal)
        : segments(segments), at(viewers + tile[2]), end(viewers + tile[3]), heads(heads), key_heads(key_heads), first_key(first_key),
          is_own(true), causal(causal) {
        queries = segment_queries(segments, *at, heads, key_heads);
        row = causal ? first_key * queries.per_key : 0;
    }

    __device__ __forceinline__ bool is_done() const { return at == end; }

    // How many keys from the first on the row sees, as far as there are so many.
    __device__ __forceinline__ int visible(int packed) const {
        return is_own && causal ? queries.token(packed) + 1 - first_key : KEYS;
    }

    __device__ __forceinline__ void advance(int rows) {
        row += rows;
        if (row < queries.count()) return;
        at++;
        is_own = false;
        row = 0;
        if (!is_done()) queries = segment_queries(segments, *at, heads, key_heads);
    }
};

template <int D>
__device__ __forceinline__ void gradient_of_queries(const bf16* q, const bf16* k, const bf16* v, const bf16* o, const bf16* dout,
                                                    const float* lse, float* delta, bf16* dq, const int32_t* segments,
                                                    const int32_t* tiles, int rows, int heads, int key_heads, int causal, float scale) {
    const int32_t* tile_of_rows = tiles + blockIdx.x * 2;
    const Queries queries = segment_queries(segments, tile_of_rows[0], heads, key_heads);
    const auto sight = segment_sight(segments, tile_of_rows[0], causal);
    const int first = tile_of_rows[1], lane = threadIdx.x % 32;
    const LaneRows mine(first, queries.count());
    const int64_t vectors[2] = {queries.vector(mine.row[0], D), queries.vector(mine.row[1], D)};

    uint32_t fq[D / 16][4], fd[D / 16][4], fo[D / 16][4];
    load_rows<D>(fd, {dout + vectors[0], dout + vectors[1]});
    load_rows<D>(fo, {o + vectors[0], o + vectors[1]});
    float row_lse[2], row_delta[2] = {};
    int hidden[2];
#pragma unroll
    for (int c = 0; c < D / 16; c++)
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                row_delta[i % 2] += to_float(pair_of(fd[c][i]).at[j]) * to_float(pair_of(fo[c][i]).at[j]);
            }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        row_delta[half] += __shfl_xor_sync(0xffffffffu, row_delta[half], 1);
        row_delta[half] += __shfl_xor_sync(0xffffffffu, row_delta[half], 2);
        const int64_t statistic = queries.statistic(mine.row[half], rows);
        if (mine.is_there[half] && lane % 4 == 0) delta[statistic] = row_delta[half];
        row_lse[half] = lse[statistic];
        hidden[half] = sight.hidden(queries.token(mine.row[half]));
    }
    load_rows<D>(fq, {q + vectors[0], q + vectors[1]});

    float sums[D / 8][4];
    clear(sums);
    const int last = min(first + 4 * WARP_ROWS, queries.count()) - 1;
    const KeyStream<D> stream(k, v, key_heads, queries.key_head);
    for_tiles<D, 128>(stream, sight, sight.tiles(queries.token(last)), [&](int i, const KeyTile& tile) {
        // Scores of 32 keys at a time: those of 64 would not leave registers enough.
#pragma unroll
        for (int key = 0; key < KEYS; key += 32) {
            float s[4][4], dp[4][4];
            clear(s);
            clear(dp);
#pragma unroll
            for (int c = 0; c < D / 16; c++) {
                multiply_rows<D, 2>(s, fq[c], stream.keys(i), key, c * 16);
                multiply_rows<D, 2>(dp, fd[c], stream.values(i), key, c * 16);
            }
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int column = key + n * 8 + lane % 4 * 2 + j % 2;
                    const bool sees = column < tile.visible(hidden[j / 2]);
                    const float p = sees ? exp2_approx(__fmaf_rn(s[n][j], scale, -row_lse[j / 2])) : 0.0f;
                    s[n][j] = p * (dp[n][j] - row_delta[j / 2]);
                }
#pragma unroll
            for (int c = 0; c < 2; c++) {
                uint32_t ds[4];
                as_factor(ds, s, c);
                multiply_columns<D>(sums, ds, stream.keys(i), key + c * 16);
            }
        }
    });
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (mine.is_there[half]) store_row<D>(dq + vectors[half], sums, half, scale * LN_2);
    }
}

// Shared memory of the gradient of keys: the tile of k and v, and twice what a step brings of 32 query rows.
template <int D>
struct QueryStream {
    static constexpr int ROWS = 32, TILE = ROWS * PITCH<D>;
    bf16 *keys, *values, *tiles;
    float* statistics;

    __device__ __forceinline__ QueryStream()
        : keys((bf16*)dyn_smem()), values(keys + KEYS * PITCH<D>), tiles(values + KEYS * PITCH<D>),
          statistics(reinterpret_cast<float*>(tiles + 4 * TILE)) {}

    __device__ __forceinline__ bf16* q(int stage) const { return tiles + stage * 2 * TILE; }
    __device__ __forceinline__ bf16* dout(int stage) const { return q(stage) + TILE; }
    __device__ __forceinline__ float* lse(int stage) const { return statistics + stage * 3 * ROWS; }
    __device__ __forceinline__ float* delta(int stage) const { return lse(stage) + ROWS; }
    // How many of the tile's keys each row sees; none beyond the last row.
    __device__ __forceinline__ int32_t* visible(int stage) const { return reinterpret_cast<int32_t*>(delta(stage) + ROWS); }

    // The viewers' next rows, four threads for each.
    __device__ __forceinline__ void load(int stage, const Viewers& viewers, const bf16* q_from, const bf16* dout_from,
                                         const float* lse_from, const float* delta_from, int rows) const {
        const int row = threadIdx.x / 4, part = threadIdx.x % 4, last = viewers.queries.count() - 1;
        const bool is_there = viewers.row + row <= last;
        const int packed = min(viewers.row + row, last);
        const int64_t vector = viewers.queries.vector(packed, D), statistic = viewers.queries.statistic(packed, rows);
#pragma unroll
        for (int chunk = part; chunk < D / 8; chunk += 4) {
            const int at = row * PITCH<D> + chunk * 8;
            cp_async16(smem_u32(q(stage) + at), q_from + vector + chunk * 8, is_there ? 16 : 0);
            cp_async16(smem_u32(dout(stage) + at), dout_from + vector + chunk * 8, is_there ? 16 : 0);
        }
        if (part == 0) cp_async4(smem_u32(lse(stage) + row), lse_from + statistic, is_there ? 4 : 0);
        if (part == 1) cp_async4(smem_u32(delta(stage) + row), delta_from + statistic, is_there ? 4 : 0);
        if (part == 2) visible(stage)[row] = is_there ? viewers.visible(packed) : 0;
        cp_async_commit();
    }
};

template <int D>
__device__ __forceinline__ void gradient_of_keys(const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse,
                                                 const float* delta, bf16* dk, bf16* dv, const int32_t* segments, const int32_t* tiles,
                                                 const int32_t* viewers_list, int rows, int heads, int key_heads, int causal, float scale) {
    const int32_t* tile = tiles + blockIdx.x * 4;
    const int32_t* segment = segments + tile[0] * SEGMENT;
    const int count = segment[1] - tile[1], lane = threadIdx.x % 32, warp_keys = threadIdx.x / 32 * WARP_ROWS;
    const int64_t stride = key_heads * D, at = (segment[0] + tile[1]) * stride + blockIdx.y * D;
    Viewers viewers(segments, tile, viewers_list, tile[1], heads, key_heads, causal);
    const QueryStream<D> stream;
    load_tile<D, KEYS, 128>(stream.keys, k + at, stride, count);
    load_tile<D, KEYS, 128>(stream.values, v + at, stride, count);
    stream.load(0, viewers, q, dout, lse, delta, rows);
    viewers.advance(stream.ROWS);

    float sums_k[D / 8][4], sums_v[D / 8][4];
    clear(sums_k);
    clear(sums_v);
    bool is_last = false;
    for (int stage = 0; !is_last; stage ^= 1) {
        // The rows are there, and all have done with those before, whose place the next take.
        cp_async_wait<0>();
        __syncthreads();
        is_last = viewers.is_done();
        if (!is_last) {
            stream.load(stage ^ 1, viewers, q, dout, lse, delta, rows);
            viewers.advance(stream.ROWS);
        }
        // Transposed: a warp has 16 keys, the columns are query rows.
        float s[4][4], dp[4][4];
        clear(s);
        clear(dp);
#pragma unroll
        for (int c = 0; c < D / 16; c++) {
            const int fragment = (warp_keys + lane % 16) * PITCH<D> + c * 16 + lane / 16 * 8;
            uint32_t a[4];
            ldmatrix_x4(a, smem_u32(stream.keys + fragment));
            multiply_rows<D, 2>(s, a, stream.q(stage), 0, c * 16);
            ldmatrix_x4(a, smem_u32(stream.values + fragment));
            multiply_rows<D, 2>(dp, a, stream.dout(stage), 0, c * 16);
        }
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int key = warp_keys + lane / 4 + j / 2 * 8, row = n * 8 + lane % 4 * 2 + j % 2;
                const bool sees = key < stream.visible(stage)[row];
                const float p = sees ? exp2_approx(__fmaf_rn(s[n][j], scale, -stream.lse(stage)[row])) : 0.0f;
                s[n][j] = p;
                dp[n][j] = p * (dp[n][j] - stream.delta(stage)[row]);
            }
#pragma unroll
        for (int c = 0; c < 2; c++) {
            uint32_t a[4];
            as_factor(a, s, c);
            multiply_columns<D>(sums_v, a, stream.dout(stage), c * 16);
            as_factor(a, dp, c);
            multiply_columns<D>(sums_k, a, stream.q(stage), c * 16);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int key = warp_keys + lane / 4 + half * 8;
        if (key < count) {
            store_row<D>(dk + at + key * stride, sums_k, half, scale * LN_2);
            store_row<D>(dv + at + key * stride, sums_v, half, 1.0f);
        }
    }
}

extern "C" __global__ void __launch_bounds__(128)
attention_d16_backward_queries_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* o, const bf16* dout, const float* lse,
                                 float* delta, bf16* dq, const int32_t* segments, const int32_t* tiles, int32_t rows, int32_t heads,
                                 int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    gradient_of_queries<16>(q, k, v, o, dout, lse, delta, dq, segments, tiles, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d16_backward_keys_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse, const float* delta,
                              bf16* dk, bf16* dv, const int32_t* segments, const int32_t* tiles, const int32_t* viewers, int32_t rows,
                              int32_t heads, int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    gradient_of_keys<16>(q, k, v, dout, lse, delta, dk, dv, segments, tiles, viewers, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d32_backward_queries_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* o, const bf16* dout, const float* lse,
                                 float* delta, bf16* dq, const int32_t* segments, const int32_t* tiles, int32_t rows, int32_t heads,
                                 int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    gradient_of_queries<32>(q, k, v, o, dout, lse, delta, dq, segments, tiles, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128, 1)
attention_d32_backward_keys_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse, const float* delta,
                              bf16* dk, bf16* dv, const int32_t* segments, const int32_t* tiles, const int32_t* viewers, int32_t rows,
                              int32_t heads, int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    gradient_of_keys<32>(q, k, v, dout, lse, delta, dk, dv, segments, tiles, viewers, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d48_backward_queries_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* o, const bf16* dout, const float* lse,
                                 float* delta, bf16* dq, const int32_t* segments, const int32_t* tiles, int32_t rows, int32_t heads,
                                 int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    gradient_of_queries<48>(q, k, v, o, dout, lse, delta, dq, segments, tiles, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d48_backward_keys_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse, const float* delta,
                              bf16* dk, bf16* dv, const int32_t* segments, const int32_t* tiles, const int32_t* viewers, int32_t rows,
                              int32_t heads, int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    gradient_of_keys<48>(q, k, v, dout, lse, delta, dk, dv, segments, tiles, viewers, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d64_backward_queries_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* o, const bf16* dout, const float* lse,
                                 float* delta, bf16* dq, const int32_t* segments, const int32_t* tiles, int32_t rows, int32_t heads,
                                 int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    gradient_of_queries<64>(q, k, v, o, dout, lse, delta, dq, segments, tiles, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d64_backward_keys_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse, const float* delta,
                              bf16* dk, bf16* dv, const int32_t* segments, const int32_t* tiles, const int32_t* viewers, int32_t rows,
                              int32_t heads, int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    gradient_of_keys<64>(q, k, v, dout, lse, delta, dk, dv, segments, tiles, viewers, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d80_backward_queries_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* o, const bf16* dout, const float* lse,
                                 float* delta, bf16* dq, const int32_t* segments, const int32_t* tiles, int32_t rows, int32_t heads,
                                 int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    gradient_of_queries<80>(q, k, v, o, dout, lse, delta, dq, segments, tiles, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d80_backward_keys_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse, const float* delta,
                              bf16* dk, bf16* dv, const int32_t* segments, const int32_t* tiles, const int32_t* viewers, int32_t rows,
                              int32_t heads, int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    gradient_of_keys<80>(q, k, v, dout, lse, delta, dk, dv, segments, tiles, viewers, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d96_backward_queries_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* o, const bf16* dout, const float* lse,
                                 float* delta, bf16* dq, const int32_t* segments, const int32_t* tiles, int32_t rows, int32_t heads,
                                 int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    gradient_of_queries<96>(q, k, v, o, dout, lse, delta, dq, segments, tiles, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d96_backward_keys_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse, const float* delta,
                              bf16* dk, bf16* dv, const int32_t* segments, const int32_t* tiles, const int32_t* viewers, int32_t rows,
                              int32_t heads, int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    gradient_of_keys<96>(q, k, v, dout, lse, delta, dk, dv, segments, tiles, viewers, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d112_backward_queries_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* o, const bf16* dout, const float* lse,
                                 float* delta, bf16* dq, const int32_t* segments, const int32_t* tiles, int32_t rows, int32_t heads,
                                 int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    gradient_of_queries<112>(q, k, v, o, dout, lse, delta, dq, segments, tiles, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d112_backward_keys_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse, const float* delta,
                              bf16* dk, bf16* dv, const int32_t* segments, const int32_t* tiles, const int32_t* viewers, int32_t rows,
                              int32_t heads, int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    gradient_of_keys<112>(q, k, v, dout, lse, delta, dk, dv, segments, tiles, viewers, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d128_backward_queries_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* o, const bf16* dout, const float* lse,
                                 float* delta, bf16* dq, const int32_t* segments, const int32_t* tiles, int32_t rows, int32_t heads,
                                 int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    gradient_of_queries<128>(q, k, v, o, dout, lse, delta, dq, segments, tiles, rows, heads, key_heads, causal, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_d128_backward_keys_bf16(const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse, const float* delta,
                              bf16* dk, bf16* dv, const int32_t* segments, const int32_t* tiles, const int32_t* viewers, int32_t rows,
                              int32_t heads, int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    gradient_of_keys<128>(q, k, v, dout, lse, delta, dk, dv, segments, tiles, viewers, rows, heads, key_heads, causal, scale);
}

// 16 packed rows. Shared memory: 2 tiles [KEYS, pitch], q and dout [16, dim], weights [16, KEYS].
extern "C" __global__ void __launch_bounds__(128, 1)
attention_backward_queries_f32(const float* q, const float* k, const float* v, const float* o, const float* dout, const float* lse,
                               float* delta, float* dq, const int32_t* segments, const int32_t* tiles, int32_t rows, int32_t heads,
                               int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    const int32_t* tile_of_rows = tiles + blockIdx.x * 2;
    const Queries queries = segment_queries(segments, tile_of_rows[0], heads, key_heads);
    const auto sight = segment_sight(segments, tile_of_rows[0], causal);
    const int first = tile_of_rows[1], count = queries.count(), lane = threadIdx.x % 32;
    const int64_t stride = (int64_t)key_heads * dim, column = queries.key_head * dim;
    float* keys = reinterpret_cast<float*>(dyn_smem());
    float* values = keys + KEYS * pitch(dim);
    float* own_q = values + KEYS * pitch(dim);
    float* own_dout = own_q + BLOCK_ROWS * dim;
    float* weights = own_dout + BLOCK_ROWS * dim;
    copy_queries(own_q, q, queries, first, dim);
    copy_queries(own_dout, dout, queries, first, dim);

    float row_lse[ROWS], row_delta[ROWS] = {};
    int hidden[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int row = first + warp_row() + r, packed = min(row, count - 1);
        const int64_t vector = queries.vector(packed, dim), statistic = queries.statistic(packed, rows);
        for (int c = lane; c < dim; c += 32) row_delta[r] += o[vector + c] * dout[vector + c];
        row_delta[r] = warp_sum(row_delta[r]);
        if (row < count && lane == 0) delta[statistic] = row_delta[r];
        row_lse[r] = lse[statistic];
        hidden[r] = sight.hidden(queries.token(packed));
    }
    Sums sums = {};
    const int tiles_seen = sight.tiles(queries.token(min(first + BLOCK_ROWS, count) - 1));
    for (int i = 0; i < tiles_seen; i++) {
        const KeyTile tile = sight.tile(i);
        __syncthreads();
        copy_tile(keys, k + tile.row * stride + column, stride, dim, tile.count);
        copy_tile(values, v + tile.row * stride + column, stride, dim, tile.count);
        __syncthreads();
        float s[ROWS][COLUMNS], dp[ROWS][COLUMNS];
        multiply_rows(s, own_q, keys, dim);
        multiply_rows(dp, own_dout, values, dim);
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                const bool sees = lane + c * 32 < tile.visible(hidden[r]);
                const float p = sees ? exp2_approx(__fmaf_rn(s[r][c], scale, -row_lse[r])) : 0.0f;
                s[r][c] = p * (dp[r][c] - row_delta[r]);
            }
        share(weights, s);
        add_weighted(sums, weights, keys, dim);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int packed = first + warp_row() + r;
        if (packed < count) store_row(dq + queries.vector(packed, dim), sums, r, dim, scale * LN_2);
    }
}

// 16 keys; a step brings 64 query rows. Shared memory: 2 tiles [KEYS, pitch], k and v [16, dim], P and dS [16, KEYS], and three
// numbers of each query row.
extern "C" __global__ void __launch_bounds__(128, 1)
attention_backward_keys_f32(const float* q, const float* k, const float* v, const float* dout, const float* lse, const float* delta,
                            float* dk, float* dv, const int32_t* segments, const int32_t* tiles, const int32_t* viewers, int32_t rows,
                            int32_t heads, int32_t key_heads, int32_t dim, int32_t causal, float scale) {
    const int32_t* tile = tiles + blockIdx.x * 4;
    const int32_t* segment = segments + tile[0] * SEGMENT;
    const int first = tile[1] + blockIdx.z * BLOCK_ROWS, count = segment[1] - first, lane = threadIdx.x % 32;
    if (count <= 0) return;
    const int64_t stride = (int64_t)key_heads * dim, at = (segment[0] + first) * stride + blockIdx.y * dim;
    float* tile_q = reinterpret_cast<float*>(dyn_smem());
    float* tile_dout = tile_q + KEYS * pitch(dim);
    float* own_k = tile_dout + KEYS * pitch(dim);
    float* own_v = own_k + BLOCK_ROWS * dim;
    float* weights_p = own_v + BLOCK_ROWS * dim;
    float* weights_ds = weights_p + BLOCK_ROWS * KEYS;
    float* tile_lse = weights_ds + BLOCK_ROWS * KEYS;
    float* tile_delta = tile_lse + KEYS;
    int32_t* visible = reinterpret_cast<int32_t*>(tile_delta + KEYS);
    copy_rows<BLOCK_ROWS>(own_k, dim, dim, count, [&](int row) { return k + at + row * stride; });
    copy_rows<BLOCK_ROWS>(own_v, dim, dim, count, [&](int row) { return v + at + row * stride; });

    Sums sums_k = {}, sums_v = {};
    for (Viewers at_rows(segments, tile, viewers, first, heads, key_heads, causal); !at_rows.is_done(); at_rows.advance(KEYS)) {
        const Queries& queries = at_rows.queries;
        const int there = queries.count() - at_rows.row;
        __syncthreads();
        copy_rows<KEYS>(tile_q, pitch(dim), dim, there, [&](int row) { return q + queries.vector(at_rows.row + row, dim); });
        copy_rows<KEYS>(tile_dout, pitch(dim), dim, there, [&](int row) { return dout + queries.vector(at_rows.row + row, dim); });
        if (threadIdx.x < KEYS) {
            const int packed = at_rows.row + threadIdx.x;
            const bool is_there = packed < queries.count();
            tile_lse[threadIdx.x] = is_there ? lse[queries.statistic(packed, rows)] : 0.0f;
            tile_delta[threadIdx.x] = is_there ? delta[queries.statistic(packed, rows)] : 0.0f;
            visible[threadIdx.x] = is_there ? at_rows.visible(packed) : 0;
        }
        __syncthreads();
        float s[ROWS][COLUMNS], dp[ROWS][COLUMNS];
        multiply_rows(s, own_k, tile_q, dim);
        multiply_rows(dp, own_v, tile_dout, dim);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            const int row = lane + c * 32;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const bool sees = warp_row() + r < visible[row];
                const float p = sees ? exp2_approx(__fmaf_rn(s[r][c], scale, -tile_lse[row])) : 0.0f;
                s[r][c] = p;
                dp[r][c] = p * (dp[r][c] - tile_delta[row]);
            }
        }
        share(weights_p, s);
        share(weights_ds, dp);
        add_weighted(sums_v, weights_p, tile_dout, dim);
        add_weighted(sums_k, weights_ds, tile_q, dim);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int key = warp_row() + r;
        if (key < count) {
            store_row(dk + at + key * stride, sums_k, r, dim, scale * LN_2);
            store_row(dv + at + key * stride, sums_v, r, dim, 1.0f);
        }
    }
}
