// Cross-entropy on given tokens: src/loss/supervised.rs, in one launch of one block.
#include "common.cuh"

constexpr int THREADS = 256;

// sums[0], sums[1] = the sums over n tokens of the first two columns of scores [n, 3] (log-probabilities and entropies), in f64;
// dscores [n, 3] = rows of slope, 0, 0. A thread adds every 256th token, from the first to the last; then the block's sums. So n alone
// decides the order.
extern "C" __global__ void __launch_bounds__(256)
supervised_loss_f32(const float* __restrict__ scores, float* __restrict__ dscores, int64_t n, float slope,
                    double* __restrict__ sums) {
    double added[2] = {0.0, 0.0};
    for (int64_t t = threadIdx.x; t < n; t += THREADS) {
        added[0] += scores[3 * t];
        added[1] += scores[3 * t + 1];
        dscores[3 * t] = slope;
        dscores[3 * t + 1] = 0.0f;
        dscores[3 * t + 2] = 0.0f;
    }
    block_sums<THREADS>(added);
    if (is_first_thread()) {
        sums[0] = added[0];
        sums[1] = added[1];
    }
}
