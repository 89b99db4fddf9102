// The GRPO loss and its gradient by scores, and the penalty of k1: src/loss.rs and src/kl/estimator.rs have the formulas.
//
// A block has a completion. Thread t has its tokens t, t + THREADS, ... in order; sums are block_sums' fixed trees, so a
// completion's numbers depend on nothing but the completion. Everything is f64 until a gradient is stored. Scores are
// [T, 3]: log-probability, entropy, exact KL.
#include "common.cuh"

constexpr int THREADS = 128;

// Columns of completions [B, 4]: its first token, how many it has, how many of these count (all or none), and where its
// sampled log-probabilities begin.
constexpr int FIRST = 0, TOKENS = 1, ACTIVE = 2, BEGIN = 3, COLUMNS = 4;
// Columns of numbers [B, 3]: the advantage, what each token's loss is multiplied by, one over the tokens that count.
constexpr int ADVANTAGE = 0, WEIGHT = 1, SHARE = 2, NUMBERS = 3;
// Columns of sums [B, 8]. Clipped ratios count tokens, or at sequence level the completion.
constexpr int SURROGATE = 0, KL_LOSS = 1, KL = 2, LOW = 3, HIGH = 4, ENTROPY = 5, DIFFERENCE = 6, ADDED = 7;
// Behind what is added: the largest difference.
constexpr int LARGEST = 7, SUMS = 8;
// Columns of totals [10], behind those of sums: the least and the greatest share of clipped ratios.
constexpr int LOW_LEAST = 8, HIGH_GREATEST = 9;
// How the KL is estimated, as the host passes it.
constexpr int32_t NONE = 0, K1 = 1, K2 = 2, K3_UNBIASED = 4, FULL = 5;

// The larger number; NaN is passed on.
static __device__ __forceinline__ double larger(double a, double b) { return a != a || a > b ? a : b; }

// Replaces each of the K numbers by the largest of the block. All threads of the block call, once.
template <int K>
static __device__ __forceinline__ void block_largest(double (&x)[K]) {
    __shared__ double of_warp[K][THREADS / 32];
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) {
            x[k] = larger(x[k], __shfl_xor_sync(0xffffffffu, x[k], distance));
        }
        if (threadIdx.x % 32 == 0) of_warp[k][threadIdx.x / 32] = x[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; k++) {
        x[k] = of_warp[k][0];
#pragma unroll
        for (int warp = 1; warp < THREADS / 32; warp++) x[k] = larger(x[k], of_warp[k][warp]);
    }
}

// The clipped surrogate at a ratio, its derivative by the logarithm of the ratio, and which side of the range was clipped.
struct Surrogate {
    double loss, slope;
    bool low, high;
};

static __device__ __forceinline__ Surrogate clipped_surrogate(double ratio, double advantage, double floor, double ceiling,
                                                              double delta) {
    const double clipped = ratio < floor ? floor : ratio > ceiling ? ceiling : ratio;
    const double clipped_slope = clipped == ratio ? ratio : 0.0;
    const bool held = ratio > delta;
    const double bounded = held ? delta : ratio, bounded_slope = held ? 0.0 : ratio;
    const double unclipped_gain = bounded * advantage, clipped_gain = clipped * advantage;
    double gain = unclipped_gain, slope = bounded_slope;
    if (clipped_gain < unclipped_gain) {
        gain = clipped_gain;
        slope = clipped_slope;
    } else if (!(unclipped_gain < clipped_gain)) {
        // Equal, or no numbers: half of each.
        slope = 0.5 * (bounded_slope + clipped_slope);
    }
    return {-gain, -advantage * slope, bounded < floor && advantage < 0.0, bounded > ceiling && advantage > 0.0};
}

// A KL estimate and its derivative by the log-probability, before the ratio of k3_unbiased.
struct Estimate {
    double value, slope;
};

static __device__ __forceinline__ Estimate estimate(int32_t estimator, double logp, const float* reference,
                                                    const float* score) {
    if (estimator == NONE) return {0.0, 0.0};
    if (estimator == FULL) return {(double)score[2], 0.0};
    const double log_r = (double)reference[0] - logp;
    if (estimator == K1) return {-log_r, 1.0};
    if (estimator == K2) return {0.5 * log_r * log_r, -log_r};
    const double r_minus_1 = expm1(log_r);
    return {r_minus_1 - log_r, -r_minus_1};
}

// scores, reference (not read without one of the sampled estimators), dscores [T, 3]; sampled holds the log-probabilities
// kept at sampling. The ratio is bounded by delta and clipped to floor and ceiling; on-policy it is 1. SEQUENCE: the ratio
// belongs to the completion.
template <bool SEQUENCE>
__device__ __forceinline__ void grpo_loss(const float* __restrict__ scores, const float* __restrict__ sampled,
                                          const float* __restrict__ reference, const int32_t* __restrict__ completions,
                                          const double* __restrict__ numbers, float* __restrict__ dscores,
                                          double* __restrict__ sums, int32_t estimator, int32_t off_policy, double floor,
                                          double ceiling, double delta, double beta) {
    const int32_t* completion = row_of(completions, blockIdx.x, COLUMNS);
    const int32_t tokens = completion[TOKENS], active = completion[ACTIVE];
    const int64_t first = completion[FIRST];
    const double* of_numbers = row_of(numbers, blockIdx.x, NUMBERS);
    const double advantage = of_numbers[ADVANTAGE], weight = of_numbers[WEIGHT];
    const float* of_scores = scores + first * 3;
    const float* of_reference = reference + first * 3;
    const float* of_sampled = sampled + completion[BEGIN];
    const auto log_ratio = [&](int32_t t) {
        return off_policy ? (double)of_scores[t * 3] - (double)of_sampled[t] : 0.0;
    };
    const auto kl = [&](int32_t t) {
        return estimate(estimator, (double)of_scores[t * 3], of_reference + t * 3, of_scores + t * 3);
    };
    const bool unbiased = estimator == K3_UNBIASED;

    // At sequence level ratio and mean KL are those of the completion.
    double means[2] = {};
    Surrogate shared = {};
    double shared_ratio = 0.0;
    if (SEQUENCE) {
        for (int32_t t = threadIdx.x; t < active; t += THREADS) {
            means[0] += log_ratio(t);
            if (unbiased) means[1] += kl(t).value;
        }
        block_sums<THREADS>(means);
        means[0] *= of_numbers[SHARE];
        means[1] *= of_numbers[SHARE];
        shared_ratio = exp(means[0]);
        shared = clipped_surrogate(shared_ratio, advantage, floor, ceiling, delta);
    }

    double added[ADDED] = {}, largest[1] = {};
    for (int32_t t = threadIdx.x; t < tokens; t += THREADS) {
        // In f32, as the log-probabilities are.
        const double difference = fabsf(of_scores[t * 3] - of_sampled[t]);
        added[DIFFERENCE] += difference;
        largest[0] = larger(largest[0], difference);
        double dlogp = 0.0, dkl = 0.0;
        if (t < active) {
            added[ENTROPY] += (double)of_scores[t * 3 + 1];
            double ratio = shared_ratio;
            Surrogate surrogate = shared;
            if (!SEQUENCE) {
                ratio = exp(log_ratio(t));
                surrogate = clipped_surrogate(ratio, advantage, floor, ceiling, delta);
                added[LOW] += surrogate.low;
                added[HIGH] += surrogate.high;
            }
            added[SURROGATE] += weight * surrogate.loss;
            dlogp = weight * surrogate.slope;
            Estimate of = kl(t);
            // The slope first: the value that it has by the ratio is the one before the ratio.
            if (unbiased) of.slope = ratio * (of.slope + (SEQUENCE ? means[1] : of.value));
            if (unbiased) of.value *= ratio;
            added[KL] += of.value;
            // Not at beta 0, where an overflowing k3 would turn into NaN.
            if (beta != 0.0) {
                added[KL_LOSS] += weight * beta * of.value;
                dlogp += weight * beta * of.slope;
            }
            if (estimator == FULL) dkl = weight * beta;
        }
        float* to = row_of(dscores, first + t, 3);
        to[0] = (float)dlogp;
        to[1] = 0.0f;
        to[2] = (float)dkl;
    }
    if (SEQUENCE && is_first_thread()) {
        added[LOW] = shared.low;
        added[HIGH] = shared.high;
    }
    block_sums<THREADS>(added);
    block_largest(largest);
    if (is_first_thread()) {
        double* to = row_of(sums, blockIdx.x, SUMS);
#pragma unroll
        for (int k = 0; k < ADDED; k++) to[k] = added[k];
        to[LARGEST] = largest[0];
    }
}

extern "C" __global__ void __launch_bounds__(128)
grpo_loss_forward_f32(const float* __restrict__ scores, const float* __restrict__ sampled,
                      const float* __restrict__ reference, const int32_t* __restrict__ completions,
                      const double* __restrict__ numbers, float* __restrict__ dscores, double* __restrict__ sums,
                      int32_t estimator, int32_t off_policy, double floor, double ceiling, double delta, double beta) {
    grpo_loss<false>(scores, sampled, reference, completions, numbers, dscores, sums, estimator, off_policy, floor, ceiling,
                     delta, beta);
}
extern "C" __global__ void __launch_bounds__(128)
grpo_loss_by_sequence_forward_f32(const float* __restrict__ scores, const float* __restrict__ sampled,
                                  const float* __restrict__ reference, const int32_t* __restrict__ completions,
                                  const double* __restrict__ numbers, float* __restrict__ dscores,
                                  double* __restrict__ sums, int32_t estimator, int32_t off_policy, double floor,
                                  double ceiling, double delta, double beta) {
    grpo_loss<true>(scores, sampled, reference, completions, numbers, dscores, sums, estimator, off_policy, floor, ceiling,
                    delta, beta);
}

// totals [10] of the sums of `count` completions, at least one. Thread t has completions t, t + THREADS, ... in order. A completion has
// as many ratios as tokens that count, by sequence one; the shares are of those that have some, and 1 and 0 if none has.
extern "C" __global__ void __launch_bounds__(128)
grpo_loss_totals_f64(const double* __restrict__ sums, const int32_t* __restrict__ completions, double* __restrict__ totals,
                     int32_t count, int32_t by_sequence) {
    double added[ADDED] = {};
    // The least share is the largest of the negative ones.
    double largest[3] = {0.0, -1.0, 0.0};
    for (int32_t b = threadIdx.x; b < count; b += THREADS) {
        const double* of = row_of(sums, b, SUMS);
#pragma unroll
        for (int k = 0; k < ADDED; k++) added[k] += of[k];
        largest[0] = larger(largest[0], of[LARGEST]);
        const int32_t ratios = by_sequence ? 1 : row_of(completions, b, COLUMNS)[ACTIVE];
        if (ratios > 0) {
            largest[1] = larger(largest[1], -(of[LOW] / (double)ratios));
            largest[2] = larger(largest[2], of[HIGH] / (double)ratios);
        }
    }
    block_sums<THREADS>(added);
    block_largest(largest);
    if (is_first_thread()) {
#pragma unroll
        for (int k = 0; k < ADDED; k++) totals[k] = added[k];
        totals[LARGEST] = largest[0];
        totals[LOW_LEAST] = -largest[1];
        totals[HIGH_GREATEST] = largest[2];
    }
}

// penalties [B]: k1, summed over all tokens of each completion.
extern "C" __global__ void __launch_bounds__(128)
k1_penalty_forward_f32(const float* __restrict__ sampled, const float* __restrict__ reference,
                       const int32_t* __restrict__ completions, double* __restrict__ penalties) {
    const int32_t* completion = row_of(completions, blockIdx.x, COLUMNS);
    const float* of_reference = row_of(reference, completion[FIRST], 3);
    double sum = 0.0;
    for (int32_t t = threadIdx.x; t < completion[TOKENS]; t += THREADS) {
        sum += (double)sampled[completion[BEGIN] + t] - (double)of_reference[t * 3];
    }
    sum = block_sum<THREADS>(sum);
    if (is_first_thread()) penalties[blockIdx.x] = sum;
}
