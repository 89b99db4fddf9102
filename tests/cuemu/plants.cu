// Kernels that are right if `bug` is 0 and hold one bug each if it's 1. They write `p`, 256 floats that hold their index
// unless said otherwise, with one block of 64 threads unless said otherwise; `q` has 256 floats that nothing has
// written. The comments that begin with @ name lines for the tests.
#include "arch.cuh"

#define PLANT extern "C" __global__ void __launch_bounds__(64)

PLANT clean(float* p, float* q, int bug) { p[threadIdx.x] += bug; }

// A barrier is missing between a write and another thread's read.
PLANT barrier_raw(float* p, float* q, int bug) {
    float* s = reinterpret_cast<float*>(dyn_smem());
    const int t = threadIdx.x;
    s[t] = p[t];  // @barrier_raw write
    if (!bug) __syncthreads();
    p[t] = s[t ? t - 1 : 0];  // @barrier_raw read
}

PLANT barrier_raw_static(float* p, float* q, int bug) {
    __shared__ float s[64];
    const int t = threadIdx.x;
    s[t] = p[t];  // @barrier_raw_static write
    if (!bug) __syncthreads();
    p[t] = s[t ? t - 1 : 0];  // @barrier_raw_static read
}

// A barrier is missing between a read and the next round's write.
PLANT barrier_war(float* p, float* q, int bug) {
    float* s = reinterpret_cast<float*>(dyn_smem());
    const int t = threadIdx.x;
    float sum = 0;
    for (int round = 0; round < 2; round++) {
        s[t] = p[t] + 100 * round;  // @barrier_war write
        __syncthreads();
        sum += s[(t + 1) % 64];  // @barrier_war read
        if (!bug) __syncthreads();
    }
    p[t] = sum;
}

// The wait leaves the group under way that is read.
PLANT copy_wait(float* p, float* q, int bug) {
    const int t = threadIdx.x;
    const float* s = reinterpret_cast<const float*>(dyn_smem());
    cp_async16(smem_u32(s + 4 * t), p + 4 * t);  // @copy_wait issue
    cp_async_commit();
    if (bug) cp_async_wait<1>();
    else cp_async_wait<0>();
    __syncthreads();
    p[t] = s[4 * t] + s[(4 * t + 4) % 256];  // @copy_wait read
}

PLANT global_overrun(float* p, float* q, int bug) {
    if (threadIdx.x == 0) p[bug ? 256 : 255] = 1;  // @global_overrun write
}

// `p` has 253 floats: its end isn't a multiple of 16 bytes.
PLANT global_overrun_unaligned(float* p, float* q, int bug) {
    if (threadIdx.x == 0) p[252] = 1;
    if (threadIdx.x == 0 && bug) p[253] = 1;  // @global_overrun_unaligned write
}

PLANT dynamic_overrun(float* p, float* q, int bug) {
    float* s = reinterpret_cast<float*>(dyn_smem());
    s[threadIdx.x + bug] = threadIdx.x;  // @dynamic_overrun write
    __syncthreads();
    p[threadIdx.x] = s[threadIdx.x];
}

PLANT dynamic_underrun(float* p, float* q, int bug) {
    float* s = reinterpret_cast<float*>(dyn_smem());
    s[int(threadIdx.x) - bug] = threadIdx.x;  // @dynamic_underrun write
    __syncthreads();
    p[threadIdx.x] = s[threadIdx.x];
}

PLANT static_overrun(float* p, float* q, int bug) {
    __shared__ float s[64];
    s[threadIdx.x + bug] = threadIdx.x;  // @static_overrun write
    __syncthreads();
    p[threadIdx.x] = s[threadIdx.x];
}

PLANT local_overrun(float* p, float* q, int bug) {
    float local[4] = {0, 1, 2, 3};
    const int i = threadIdx.x % 4 + bug;
    p[threadIdx.x] = local[i];  // @local_overrun read
}

PLANT uninitialised_global(float* p, float* q, int bug) {
    if (bug) p[threadIdx.x] += q[threadIdx.x];  // @uninitialised_global read
}

PLANT uninitialised_shared(float* p, float* q, int bug) {
    float* s = reinterpret_cast<float*>(dyn_smem());
    if (threadIdx.x >= bug) s[threadIdx.x] = threadIdx.x;
    __syncthreads();
    p[threadIdx.x] = s[threadIdx.x];  // @uninitialised_shared read
}

PLANT misaligned(float* p, float* q, int bug) {
    const float4 v = *reinterpret_cast<const float4*>(p + 4 * threadIdx.x % 128 + bug);  // @misaligned read
    __syncthreads();
    p[threadIdx.x] = v.x - bug;
}

struct alignas(16) Pack {
    float at[4];
};
PLANT misaligned_pack(float* p, float* q, int bug) {
    const Pack v = *reinterpret_cast<const Pack*>(p + 4 * threadIdx.x % 128 + bug);  // @misaligned_pack read
    __syncthreads();
    p[threadIdx.x] = v.at[0] - bug;
}

// The threads of a warp exchange values without __syncwarp; a shuffle orders nothing.
PLANT missing_syncwarp(float* p, float* q, int bug) {
    float* s = reinterpret_cast<float*>(dyn_smem());
    const int t = threadIdx.x;
    s[t] = p[t];  // @missing_syncwarp write
    const float other = __shfl_xor_sync(0xffffffffu, p[t], 1);
    if (!bug) __syncwarp();
    p[t] = other + s[t ^ 1];  // @missing_syncwarp read
}

PLANT divergent_barrier(float* p, float* q, int bug) {
    if (bug && threadIdx.x < 32) {
        __syncthreads();  // @divergent_barrier one
    } else {
        __syncthreads();  // @divergent_barrier other
    }
}

// Half a warp shuffles with a mask that names all of it, the other half waits elsewhere.
PLANT shuffle_absent(float* p, float* q, int bug) {
    const int t = threadIdx.x;
    float v = p[t];
    if (!bug || t % 32 < 16) v = __shfl_xor_sync(0xffffffffu, v, 1);  // @shuffle_absent
    __syncthreads();  // @shuffle_absent barrier
    p[t] = v;
}

PLANT shuffle_mask(float* p, float* q, int bug) {
    p[threadIdx.x] = __shfl_sync(bug ? 0xffff : 0xffffffffu, p[threadIdx.x], 0);  // @shuffle_mask
}

__device__ int recurse(volatile float* q, int depth) {
    volatile int frame[256];
    frame[depth & 255] = depth;
    return depth == 0 ? 0 : recurse(q, depth - 1) + frame[depth & 255];
}
PLANT stack_overflow(float* p, float* q, int bug) { p[threadIdx.x] = recurse(q, bug ? 1000 : 1); }

// Two blocks. The second one writes, with the same value, 4 floats of the first one too.
PLANT blocks_write(float* p, float* q, int bug) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    p[i] = 7;
    if (bug && i >= 64 && i < 68) p[i - 64] = 7;  // @blocks_write
}

// Two blocks. The second one writes, with the value that is there, what the first one reads.
PLANT blocks_read(float* p, float* q, int bug) {
    const int t = threadIdx.x;
    if (blockIdx.x == 0) {
        p[t] = p[64 + t];  // @blocks_read read
    } else {
        p[128 + t] = 64 + t;
        if (bug) p[64 + t] = 64 + t;  // @blocks_read write
    }
}

// One thread waits for a write instead of joining the barrier.
PLANT deadlock(float* p, float* q, int bug) {
    if (bug && threadIdx.x == 5) {
        while (*reinterpret_cast<volatile float*>(p) != 12345) spin_hint();  // @deadlock loop
    } else {
        __syncthreads();  // @deadlock barrier
    }
}

// A named barrier for both warps that only one comes to.
PLANT named_deadlock(float* p, float* q, int bug) {
    if (!bug || threadIdx.x < 32) named_barrier_sync(1, 64);  // @named_deadlock
}

PLANT division_by_zero(float* p, float* q, int bug) {
    volatile int zero = 1 - bug;
    p[threadIdx.x] = int(threadIdx.x) / zero;  // @division_by_zero
}

PLANT trap(float* p, float* q, int bug) {
    if (bug) __trap();  // @trap
}

// 128 blocks. The place of each in the order in which they ran, then that of each thread of block 0.
extern "C" __global__ void __launch_bounds__(64) order(float* p, float* q, int bug) {
    int* count = reinterpret_cast<int*>(q);
    if (threadIdx.x == 0) p[blockIdx.x] = atomicAdd(count, 1);
    if (blockIdx.x == 0) p[128 + threadIdx.x] = atomicAdd(count + 1, 1);
}

// y += x, both of `p`'s type; for streams and graphs. `bug` is the number of elements.
PLANT add(float* p, float* q, int bug) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < bug; i += gridDim.x * blockDim.x) p[i] += q[i];
}
