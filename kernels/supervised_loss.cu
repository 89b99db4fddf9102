// Cross-entropy on given tokens: src/loss/supervised.rs, in one launch of one block.
#include "common.cuh"

constexpr int THREADS = 256;

// sum[0] = the sum over n tokens of the first column of scores [n, 3], in f64; dscores [n, 3] = rows of slope, 0, 0. A
// thread adds every 256th token, from the first to the last; then the block's sum. So n alone decides the order.
extern "C" __global__ void __launch_bounds__(256)
supervised_loss_f32(const float* __restrict__ scores, float* __restrict__ dscores, int64_t n, float slope,
                    double* __restrict__ sum) {
    double of_thread = 0.0;
    for (int64_t t = threadIdx.x; t < n; t += THREADS) {
        of_thread += scores[3 * t];
        dscores[3 * t] = slope;
        dscores[3 * t + 1] = 0.0f;
        dscores[3 * t + 2] = 0.0f;
    }
    const double of_block = block_sum<THREADS>(of_thread);
    if (is_first_thread()) sum[0] = of_block;
}
