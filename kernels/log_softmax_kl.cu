// Log-probabilities, entropies and exact KL of rows of logits, and their gradient: src/ops/log_softmax_kl.rs has formulas.
//
// A block has a row. Thread t has the packs t, t + THREADS, ... and keeps its own maximum and its sums relative to it; then
// the maximum of the threads' and, in f64, the sums relative to that. Which element is whose depends on the vocabulary
// alone, and no product is left to the compiler to fuse with a sum, so a row has the same bits in every kernel here.
#include "common.cuh"
#include <float.h>

constexpr int THREADS = 512;
// Packs that a thread loads at once, and updates its maximum once for.
constexpr int AHEAD = 4;
constexpr int N = PACK<float>;

// What is kept of a row for the backward pass, with z = logits / temperature: the maximum and log sum exp(z - maximum) of
// the policy's, those of the reference's, entropy, KL.
constexpr int KEPT = 6;

// Statistics of a row, in the order in which they are kept.
struct Row {
    float top, log_sum, reference_top, reference_log_sum, entropy, kl;
};

static __device__ __forceinline__ float scaled(float logit, float temperature) {
    return temperature != 1.0f ? logit / temperature : logit;
}

// log p of z: what a token's log-probability is rounded to.
static __device__ __forceinline__ float log_prob(float z, float top, double log_sum) {
    return (float)((double)z - (double)top - log_sum);
}

// The largest number of the block, in every thread; NaN is passed over. All threads of the block call.
static __device__ __forceinline__ float block_max(float x) {
    __shared__ float of_warp[THREADS / 32];
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    x = of_warp[0];
#pragma unroll
    for (int warp = 1; warp < THREADS / 32; warp++) x = fmaxf(x, of_warp[warp]);
    // The next call writes the array again.
    __syncthreads();
    return x;
}

// The numbers of a thread's packs [AHEAD][N] from element i on, divided by the temperature.
static __device__ __forceinline__ void load_scaled(const float* row, int32_t i, int32_t width, float temperature,
                                                   float (&z)[AHEAD][N]) {
#pragma unroll
    for (int a = 0; a < AHEAD; a++) {
        const int32_t at = i + a * THREADS * N;
        const Pack<float> pack = load_pack(row + at, width - at);
#pragma unroll
        for (int j = 0; j < N; j++) z[a][j] = scaled(pack.at[j], temperature);
    }
}

// Sums over a thread's share of a row, relative to the largest number of it so far.
struct Sums {
    // Below every number but -inf: nothing has been added.
    float top = -FLT_MAX;
    // Of exp(x), with x = z - top; of exp(x) x.
    float weight = 0.0f, product = 0.0f;

    // What a step to another maximum adds to every x: finite, so that it adds nothing to no weight.
    __device__ __forceinline__ float step(float to) const { return fmaxf(top - to, -FLT_MAX); }

    // Steps to a larger maximum; gives what is left of a weight.
    __device__ __forceinline__ float rise(float to) {
        const float by = step(to), factor = expf(by);
        product = fmaf(weight, by, product) * factor;
        weight = __fmul_rn(weight, factor);
        top = to;
        return factor;
    }

    // Adds an element; gives its weight.
    __device__ __forceinline__ float add(float x) {
        const float of_x = expf(x);
        weight = __fadd_rn(weight, of_x);
        product = fmaf(of_x, x, product);
        return of_x;
    }
};

// The largest of the numbers that are inside the row, or `top`.
static __device__ __forceinline__ float largest(const float (&z)[AHEAD][N], int32_t i, int32_t width, float top) {
#pragma unroll
    for (int a = 0; a < AHEAD; a++) {
#pragma unroll
        for (int j = 0; j < N; j++) {
            if (i + a * THREADS * N + j < width) top = fmaxf(top, z[a][j]);
        }
    }
    return top;
}

// The row's statistics, and log_sum in f64. KL: against the reference's logits. All threads of the block call.
template <bool KL>
__device__ __forceinline__ Row row_statistics(const float* __restrict__ logits, const float* __restrict__ reference,
                                              int32_t width, float temperature, double& log_sum) {
    Sums ours, theirs;
    // Of exp(x) (x - x of the reference).
    float difference = 0.0f;
    const auto rise = [&](float top, float reference_top) {
        if (KL) difference = fmaf(ours.weight, ours.step(top) - theirs.step(reference_top), difference);
        difference *= ours.rise(top);
        if (KL) theirs.rise(reference_top);
    };
    for (int32_t i = threadIdx.x * N; i < width; i += AHEAD * THREADS * N) {
        float z[AHEAD][N], q[AHEAD][N];
        load_scaled(logits, i, width, temperature, z);
        if (KL) load_scaled(reference, i, width, temperature, q);
        rise(largest(z, i, width, ours.top), KL ? largest(q, i, width, theirs.top) : 0.0f);
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
#pragma unroll
            for (int j = 0; j < N; j++) {
                // What is beyond the end weighs nothing.
                const bool inside = i + a * THREADS * N + j < width;
                const float x = inside ? z[a][j] - ours.top : -FLT_MAX, weight = ours.add(x);
                if (KL) {
                    const float y = inside ? q[a][j] - theirs.top : -FLT_MAX;
                    difference = fmaf(weight, x - y, difference);
                    theirs.add(y);
                }
            }
        }
    }
    const float top = block_max(ours.top);
    rise(top, KL ? block_max(theirs.top) : 0.0f);
    double sums[KL ? 4 : 2] = {(double)ours.weight, (double)ours.product};
    if constexpr (KL) {
        sums[2] = (double)difference;
        sums[3] = (double)theirs.weight;
    }
    block_sums<THREADS>(sums);
    log_sum = log(sums[0]);
    Row row = {ours.top, (float)log_sum, 0.0f, 0.0f, (float)(log_sum - sums[1] / sums[0]), 0.0f};
    if constexpr (KL) {
        const double reference_log_sum = log(sums[3]);
        row.reference_top = theirs.top;
        row.reference_log_sum = (float)reference_log_sum;
        // Of equal rows exactly 0.
        row.kl = (float)(sums[2] / sums[0] - (log_sum - reference_log_sum));
    }
    return row;
}

// Row r of logits and of the reference's (which may be null) [rows, width] has the targets starts[r] to starts[r+1]: their
// tokens, and their places in scores [n, 3] (log-probability, entropy, KL). kept [rows, KEPT].
extern "C" __global__ void __launch_bounds__(512)
log_softmax_kl_forward_f32(const float* __restrict__ logits, const float* __restrict__ reference,
                           const int32_t* __restrict__ starts, const int32_t* __restrict__ tokens,
                           const int32_t* __restrict__ places, float* __restrict__ kept, float* __restrict__ scores,
                           int32_t width, float temperature) {
    const float* of_row = row_of(logits, blockIdx.x, width);
    double log_sum;
    const Row row = reference ? row_statistics<true>(of_row, row_of(reference, blockIdx.x, width), width, temperature, log_sum)
                              : row_statistics<false>(of_row, nullptr, width, temperature, log_sum);
    for (int32_t t = starts[blockIdx.x] + threadIdx.x; t < starts[blockIdx.x + 1]; t += THREADS) {
        float* score = row_of(scores, places[t], 3);
        score[0] = log_prob(scaled(of_row[tokens[t]], temperature), row.top, log_sum);
        score[1] = row.entropy;
        score[2] = row.kl;
    }
    if (is_first_thread()) {
        float* to = row_of(kept, blockIdx.x, KEPT);
        to[0] = row.top;
        to[1] = row.log_sum;
        to[2] = row.reference_top;
        to[3] = row.reference_log_sum;
        to[4] = row.entropy;
        to[5] = row.kl;
    }
}

// out[slots[b]] = the log-probability of tokens[b] by row b of logits [B, width]; NaN for a token outside the vocabulary.
// Slots outside of out [size] aren't written.
extern "C" __global__ void __launch_bounds__(512)
sampled_log_probs_forward_f32(const float* __restrict__ logits, const int32_t* __restrict__ tokens,
                              const int32_t* __restrict__ slots, float* __restrict__ out, int64_t size, int32_t width,
                              float temperature) {
    const float* of_row = row_of(logits, blockIdx.x, width);
    double log_sum;
    const Row row = row_statistics<false>(of_row, nullptr, width, temperature, log_sum);
    const int32_t token = tokens[blockIdx.x], slot = slots[blockIdx.x];
    if (is_first_thread() && slot >= 0 && slot < size) {
        const bool known = token >= 0 && token < width;
        out[slot] = known ? log_prob(scaled(of_row[token], temperature), row.top, log_sum) : NAN;
    }
}

// Row r of logits, of the reference's (which may be null) and of dz [rows, width]; what the forward pass kept of it is row
// slots[r] of kept. Its targets are starts[r] to starts[r+1], with their tokens and their places in dscores [n, 3]. Without
// a target dz is 0 whatever the logits hold.
template <class T>
__device__ __forceinline__ void backward(const float* __restrict__ logits, const float* __restrict__ reference,
                                         const float* __restrict__ kept, const int32_t* __restrict__ slots,
                                         const int32_t* __restrict__ starts, const int32_t* __restrict__ tokens,
                                         const int32_t* __restrict__ places, const float* __restrict__ dscores,
                                         T* __restrict__ dz, int32_t width, float temperature) {
    const int32_t first = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    const float* of_row = row_of(logits, blockIdx.x, width);
    const float* of_reference = reference ? row_of(reference, blockIdx.x, width) : nullptr;
    const float* of_kept = row_of(kept, slots[blockIdx.x], KEPT);
    const Row row = {of_kept[0], of_kept[1], of_kept[2], of_kept[3], of_kept[4], of_kept[5]};
    T* to = row_of(dz, blockIdx.x, width);
    // Sums over the row's targets of what comes in by log-probability, entropy and KL.
    float a = 0.0f, b = 0.0f, c = 0.0f;
    for (int32_t t = first; t < end; t++) {
        const float* incoming = row_of(dscores, places[t], 3);
        a += incoming[0];
        b += incoming[1];
        c += incoming[2];
    }
    const bool plain = b == 0.0f && c == 0.0f;
    // The gradient by z of a token that nobody asked for.
    auto slope = [&](float z, float q) {
        const float logp = z - row.top - row.log_sum, p = expf(logp);
        if (plain) return -(a * p);
        const float logq = q - row.reference_top - row.reference_log_sum;
        const float ratio = reference ? logp - logq - row.kl : 0.0f;
        return p * (c * ratio - a - b * (logp + row.entropy));
    };
    for_packs<float, THREADS>(width, [&](int32_t i, int32_t count) {
        const Pack<float> z = load_pack(of_row + i, count);
        Pack<float> q = {};
        if (!plain && reference) q = load_pack(of_reference + i, count);
        Pack<T, N> pack;
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float d = slope(scaled(z.at[j], temperature), scaled(q.at[j], temperature));
            pack.at[j] = from_float<T>(first < end ? scaled(d, temperature) : 0.0f);
        }
        store_pack(to + i, count, pack);
    });
    for (int32_t t = first; t < end; t++) {
        const int32_t token = tokens[t];
        // The thread that has written the token's pack: no barrier.
        if (token / N % THREADS != threadIdx.x) continue;
        const float q = of_reference ? scaled(of_reference[token], temperature) : 0.0f;
        float d = slope(scaled(of_row[token], temperature), q);
        // The same sum for every target of this token.
        for (int32_t other = first; other < end; other++) {
            if (tokens[other] == token) d += row_of(dscores, places[other], 3)[0];
        }
        to[token] = from_float<T>(scaled(d, temperature));
    }
}

extern "C" __global__ void __launch_bounds__(512)
log_softmax_kl_backward_bf16(const float* __restrict__ logits, const float* __restrict__ reference,
                             const float* __restrict__ kept, const int32_t* __restrict__ slots,
                             const int32_t* __restrict__ starts, const int32_t* __restrict__ tokens,
                             const int32_t* __restrict__ places, const float* __restrict__ dscores, bf16* __restrict__ dz,
                             int32_t width, float temperature) {
    backward(logits, reference, kept, slots, starts, tokens, places, dscores, dz, width, temperature);
}
extern "C" __global__ void __launch_bounds__(512)
log_softmax_kl_backward_f32(const float* __restrict__ logits, const float* __restrict__ reference,
                            const float* __restrict__ kept, const int32_t* __restrict__ slots,
                            const int32_t* __restrict__ starts, const int32_t* __restrict__ tokens,
                            const int32_t* __restrict__ places, const float* __restrict__ dscores, float* __restrict__ dz,
                            int32_t width, float temperature) {
    backward(logits, reference, kept, slots, starts, tokens, places, dscores, dz, width, temperature);
}
