// Advantages relative to the group: src/advantage.rs, in one launch of one block.
//
// A thread has whole groups and adds in their order, in f64 and without contraction to fused multiply-adds: within a group
// the same bits as on the CPU. The sums over the batch are trees, so the batch's deviation differs by f64's rounding.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr double STD_EPSILON = 1e-4;
// What deviations are divided by, as the host passes it.
constexpr int32_t BY_GROUP = 1, BY_BATCH = 2;

// Whether a reward is a number: NaN, which differs from itself, says that nobody scored the completion.
static __device__ __forceinline__ bool is_scored(double reward) { return reward == reward; }

// Adds the rewards that were scored and their number to sums[0] and sums[1].
static __device__ __forceinline__ void add_scored(const double* rewards, int32_t size, double (&sums)[2]) {
    for (int32_t i = 0; i < size; i++) {
        if (is_scored(rewards[i])) {
            sums[0] += rewards[i];
            sums[1] += 1.0;
        }
    }
}

// The sum of squared distances from `mean` of the rewards that were scored.
static __device__ __forceinline__ double squares(const double* rewards, int32_t size, double mean) {
    double sum = 0.0;
    for (int32_t i = 0; i < size; i++) {
        const double distance = rewards[i] - mean;
        if (is_scored(rewards[i])) sum = __dadd_rn(sum, __dmul_rn(distance, distance));
    }
    return sum;
}

// Bessel-corrected deviation; of fewer than two numbers it is meaningless, and not used.
static __device__ __forceinline__ double deviation(double squares, double count) { return sqrt(squares / (count - 1.0)); }

// rewards and advantages [groups * size], groups contiguous.
extern "C" __global__ void __launch_bounds__(256)
group_advantage_forward_f32(const double* __restrict__ rewards, float* __restrict__ advantages, int32_t groups, int32_t size,
                            int32_t scale) {
    double batch_divisor = 1.0;
    if (scale == BY_BATCH) {
        double sums[2] = {};
        for (int32_t g = threadIdx.x; g < groups; g += THREADS) add_scored(row_of(rewards, g, size), size, sums);
        block_sums<THREADS>(sums);
        double around_mean = 0.0;
        for (int32_t g = threadIdx.x; g < groups; g += THREADS) {
            around_mean += squares(row_of(rewards, g, size), size, sums[0] / sums[1]);
        }
        batch_divisor = deviation(block_sum<THREADS>(around_mean), sums[1]) + STD_EPSILON;
    }
    for (int32_t g = threadIdx.x; g < groups; g += THREADS) {
        const double* of_group = row_of(rewards, g, size);
        double sums[2] = {}, low = INFINITY, high = -INFINITY;
        add_scored(of_group, size, sums);
        for (int32_t i = 0; i < size; i++) {
            // Of NaN and a number they give the number.
            low = fmin(low, of_group[i]);
            high = fmax(high, of_group[i]);
        }
        const double mean = sums[0] / sums[1];
        double divisor = batch_divisor;
        if (scale == BY_GROUP) divisor = deviation(squares(of_group, size, mean), sums[1]) + STD_EPSILON;
        for (int32_t i = 0; i < size; i++) {
            const bool teaches = low < high && is_scored(of_group[i]);
            row_of(advantages, g, size)[i] = teaches ? (float)((of_group[i] - mean) / divisor) : 0.0f;
        }
    }
}
