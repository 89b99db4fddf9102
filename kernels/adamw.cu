// AdamW over a flat arena, and the global gradient norm: formulas of src/optim/adamw.rs and src/optim/clip.rs.
//
// The arena holds all tensors one behind the other, each at a multiple of a pack; a chunk is a piece of one tensor, and a
// block has a chunk: [chunk_begin, chunk_begin + chunk_length) of tensor chunk_tensor. Per tensor four scalars, see Scalars.
#include "common.cuh"

constexpr int THREADS = 256;

// `scalars` [tensors, 4]. A tensor without gradient (taken = 0) keeps value and moments, and has no part in the norm.
struct Scalars {
    float taken, keep, bias_correction2_sqrt, negative_step_size;
};

static __device__ __forceinline__ Scalars scalars_of(const float* scalars, int32_t tensor) {
    const Pack<float> pack = load_pack(scalars + 4 * (int64_t)tensor, 4);
    return {pack.at[0], pack.at[1], pack.at[2], pack.at[3]};
}

// First stage of the norm: partial[blockIdx.x] = the sum of squares of the block's chunk, in f64.
extern "C" __global__ void __launch_bounds__(256)
grad_norm_partial_f32(const float* __restrict__ grad, const int64_t* __restrict__ chunk_begin,
                      const int32_t* __restrict__ chunk_length, const int32_t* __restrict__ chunk_tensor,
                      const float* __restrict__ scalars, double* __restrict__ partial) {
    const float* of_chunk = grad + chunk_begin[blockIdx.x];
    double sum = 0.0;
    if (scalars_of(scalars, chunk_tensor[blockIdx.x]).taken != 0.0f) {
        for_packs<float, THREADS>(chunk_length[blockIdx.x], [&](int32_t i, int32_t count) {
            const Pack<float> pack = load_pack(of_chunk + i, count);
            // The square of a float is exact in f64: fused or not, the same bits.
#pragma unroll
            for (int j = 0; j < PACK<float>; j++) sum += (double)pack.at[j] * (double)pack.at[j];
        });
    }
    sum = block_sum<THREADS>(sum);
    if (is_first_thread()) partial[blockIdx.x] = sum;
}

// Second stage, one block: norm_and_clip[0] = sqrt of the sum of partial [count], norm_and_clip[1] = what gradients are
// multiplied by: min(1, max_norm / (norm + 1e-6)), 1 without clipping (max_norm <= 0). Of no meaning if the norm is NaN.
extern "C" __global__ void __launch_bounds__(256)
grad_norm_finish_f32(const double* __restrict__ partial, int32_t count, double max_norm,
                     double* __restrict__ norm_and_clip) {
    double sum = 0.0;
    for (int32_t i = threadIdx.x; i < count; i += THREADS) sum += partial[i];
    const double norm = sqrt(block_sum<THREADS>(sum));
    if (is_first_thread()) {
        norm_and_clip[0] = norm;
        norm_and_clip[1] = max_norm <= 0.0 ? 1.0 : fmin(max_norm / (norm + 1e-6), 1.0);
    }
}

// One update. Every operation is rounded by itself, as the CPU does it, so that both give the same bits. A norm that is
// NaN or infinite changes nothing. `copy` (COPY only): the parameter rounded to bf16, for the model.
template <bool COPY>
__device__ __forceinline__ void adamw_step(float* param, bf16* copy, float* exp_avg, float* exp_avg_sq, const float* grad,
                                           const int64_t* chunk_begin, const int32_t* chunk_length,
                                           const int32_t* chunk_tensor, const float* scalars, const double* norm_and_clip,
                                           float one_minus_beta1, float beta2, float one_minus_beta2, float epsilon) {
    const Scalars of_tensor = scalars_of(scalars, chunk_tensor[blockIdx.x]);
    const bool is_finite = norm_and_clip[0] < INFINITY;
    if (of_tensor.taken == 0.0f || !is_finite) return;
    const float clip = (float)norm_and_clip[1];
    for_packs<float, THREADS>(chunk_length[blockIdx.x], [&](int32_t i, int32_t count) {
        const int64_t at = chunk_begin[blockIdx.x] + i;
        const Pack<float> grads = load_pack(grad + at, count);
        Pack<float> p = load_pack(param + at, count);
        Pack<float> m = load_pack(exp_avg + at, count);
        Pack<float> v = load_pack(exp_avg_sq + at, count);
        Pack<bf16, PACK<float>> narrow;
#pragma unroll
        for (int j = 0; j < PACK<float>; j++) {
            const float g = __fmul_rn(grads.at[j], clip);
            const float kept = __fmul_rn(p.at[j], of_tensor.keep);
            m.at[j] = __fadd_rn(m.at[j], __fmul_rn(one_minus_beta1, __fsub_rn(g, m.at[j])));
            v.at[j] = __fadd_rn(__fmul_rn(beta2, v.at[j]), __fmul_rn(__fmul_rn(one_minus_beta2, g), g));
            const float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v.at[j]), of_tensor.bias_correction2_sqrt), epsilon);
            p.at[j] = __fadd_rn(kept, __fdiv_rn(__fmul_rn(of_tensor.negative_step_size, m.at[j]), denominator));
            narrow.at[j] = from_float<bf16>(p.at[j]);
        }
        store_pack(param + at, count, p);
        store_pack(exp_avg + at, count, m);
        store_pack(exp_avg_sq + at, count, v);
        if (COPY) store_pack(copy + at, count, narrow);
    });
}

extern "C" __global__ void __launch_bounds__(256)
adamw_step_bf16(float* __restrict__ param, bf16* __restrict__ copy, float* __restrict__ exp_avg,
                float* __restrict__ exp_avg_sq, const float* __restrict__ grad, const int64_t* __restrict__ chunk_begin,
                const int32_t* __restrict__ chunk_length, const int32_t* __restrict__ chunk_tensor,
                const float* __restrict__ scalars, const double* __restrict__ norm_and_clip, float one_minus_beta1,
                float beta2, float one_minus_beta2, float epsilon) {
    adamw_step<true>(param, copy, exp_avg, exp_avg_sq, grad, chunk_begin, chunk_length, chunk_tensor, scalars, norm_and_clip,
                     one_minus_beta1, beta2, one_minus_beta2, epsilon);
}
extern "C" __global__ void __launch_bounds__(256)
adamw_step_f32(float* __restrict__ param, float* __restrict__ exp_avg, float* __restrict__ exp_avg_sq,
               const float* __restrict__ grad, const int64_t* __restrict__ chunk_begin,
               const int32_t* __restrict__ chunk_length, const int32_t* __restrict__ chunk_tensor,
               const float* __restrict__ scalars, const double* __restrict__ norm_and_clip, float one_minus_beta1,
               float beta2, float one_minus_beta2, float epsilon) {
    adamw_step<false>(param, nullptr, exp_avg, exp_avg_sq, grad, chunk_begin, chunk_length, chunk_tensor, scalars,
                      norm_and_clip, one_minus_beta1, beta2, one_minus_beta2, epsilon);
}
