// Counter-based random numbers, Philox 4x32-10 (Salmon et al. 2011): the words of src/rng.rs.
#pragma once
#include "common.cuh"

// The four words of one counter under one key.
static __device__ __forceinline__ uint4 philox(uint32_t key_low, uint32_t key_high, uint4 counter) {
    constexpr uint32_t M0 = 0xd2511f53u, M1 = 0xcd9e8d57u, W0 = 0x9e3779b9u, W1 = 0xbb67ae85u;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        counter = make_uint4(__umulhi(M1, counter.z) ^ counter.y ^ key_low, M1 * counter.z,
                             __umulhi(M0, counter.x) ^ counter.w ^ key_high, M0 * counter.x);
        key_low += W0;
        key_high += W1;
    }
    return counter;
}
