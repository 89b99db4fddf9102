// One kernel per wrapper of arch.cuh: it hands the wrapper small exact inputs and writes out what came, register by
// register, so that it can be held against the PTX manual's layouts. On a GPU it shows that the wrappers say what we mean
// by them; on the emulator, that the emulation does too.
#include "arch.cuh"
#include "philox.cuh"

// Copies `bytes` into shared memory. All threads of the block call it; a barrier must follow.
static __device__ void fill_shared(unsigned char* to, const uint8_t* from, int bytes) {
    for (int i = threadIdx.x; i < bytes; i += blockDim.x) to[i] = from[i];
}

// What each thread takes for the shared address of dynamic shared memory.
extern "C" __global__ void __launch_bounds__(32)
conform_shared_address(uint32_t* addresses) {
    addresses[threadIdx.x] = smem_u32(dyn_smem());
}

// ldmatrix by one warp: lane i gives the row at byte `rows[i]` of `tile`, whose `bytes` bytes lie at the beginning of
// shared memory. registers [32, MATRICES]: what each lane got.
template <int MATRICES, class Load>
static __device__ void ldmatrix_test(const uint8_t* tile, int bytes, const uint32_t* rows, uint32_t* registers, Load load) {
    fill_shared(dyn_smem(), tile, bytes);
    __syncthreads();
    uint32_t r[MATRICES];
    load(r, smem_u32(dyn_smem()) + rows[threadIdx.x]);
    for (int m = 0; m < MATRICES; m++) registers[threadIdx.x * MATRICES + m] = r[m];
}

extern "C" __global__ void __launch_bounds__(32)
conform_ldmatrix_x1(const uint8_t* tile, int32_t bytes, const uint32_t* rows, uint32_t* registers) {
    ldmatrix_test<1>(tile, bytes, rows, registers, [](uint32_t (&r)[1], uint32_t row) { ldmatrix_x1(r, row); });
}
extern "C" __global__ void __launch_bounds__(32)
conform_ldmatrix_x2(const uint8_t* tile, int32_t bytes, const uint32_t* rows, uint32_t* registers) {
    ldmatrix_test<2>(tile, bytes, rows, registers, [](uint32_t (&r)[2], uint32_t row) { ldmatrix_x2(r, row); });
}
extern "C" __global__ void __launch_bounds__(32)
conform_ldmatrix_x4(const uint8_t* tile, int32_t bytes, const uint32_t* rows, uint32_t* registers) {
    ldmatrix_test<4>(tile, bytes, rows, registers, [](uint32_t (&r)[4], uint32_t row) { ldmatrix_x4(r, row); });
}
extern "C" __global__ void __launch_bounds__(32)
conform_ldmatrix_x1_trans(const uint8_t* tile, int32_t bytes, const uint32_t* rows, uint32_t* registers) {
    ldmatrix_test<1>(tile, bytes, rows, registers, [](uint32_t (&r)[1], uint32_t row) { ldmatrix_x1_trans(r, row); });
}
extern "C" __global__ void __launch_bounds__(32)
conform_ldmatrix_x2_trans(const uint8_t* tile, int32_t bytes, const uint32_t* rows, uint32_t* registers) {
    ldmatrix_test<2>(tile, bytes, rows, registers, [](uint32_t (&r)[2], uint32_t row) { ldmatrix_x2_trans(r, row); });
}
extern "C" __global__ void __launch_bounds__(32)
conform_ldmatrix_x4_trans(const uint8_t* tile, int32_t bytes, const uint32_t* rows, uint32_t* registers) {
    ldmatrix_test<4>(tile, bytes, rows, registers, [](uint32_t (&r)[4], uint32_t row) { ldmatrix_x4_trans(r, row); });
}

// mma.sync by one warp. a [32, 4], b [32, 2], d [32, 4]: the lanes' registers; d is read and written.
extern "C" __global__ void __launch_bounds__(32)
conform_mma_m16n8k16(const uint32_t* a, const uint32_t* b, float* d) {
    const int lane = threadIdx.x;
    uint32_t ra[4];
    float rd[4];
    for (int i = 0; i < 4; i++) ra[i] = a[4 * lane + i];
    for (int i = 0; i < 4; i++) rd[i] = d[4 * lane + i];
    mma_m16n8k16_bf16(rd, ra, b[2 * lane], b[2 * lane + 1]);
    for (int i = 0; i < 4; i++) d[4 * lane + i] = rd[i];
}

// mma_ldmatrix over two tiles by one warp. rows [32, 2]: the lanes' rows, as bytes in `tile`; a [32, 4]; d [32, 4, 4].
template <bool TRANS>
static __device__ void mma_ldmatrix_test(const uint8_t* tile, int bytes, const uint32_t* rows, const uint32_t* a, float* d) {
    fill_shared(dyn_smem(), tile, bytes);
    __syncthreads();
    const int lane = threadIdx.x;
    const uint32_t shared = smem_u32(dyn_smem());
    const uint32_t row[2] = {shared + rows[2 * lane], shared + rows[2 * lane + 1]};
    uint32_t ra[4];
    float rd[4][4];
    for (int i = 0; i < 4; i++) ra[i] = a[4 * lane + i];
    for (int i = 0; i < 16; i++) rd[i / 4][i % 4] = d[16 * lane + i];
    mma_ldmatrix<2, TRANS>(rd, ra, row);
    for (int i = 0; i < 16; i++) d[16 * lane + i] = rd[i / 4][i % 4];
}

extern "C" __global__ void __launch_bounds__(32)
conform_mma_ldmatrix(const uint8_t* tile, int32_t bytes, const uint32_t* rows, const uint32_t* a, float* d) {
    mma_ldmatrix_test<false>(tile, bytes, rows, a, d);
}
extern "C" __global__ void __launch_bounds__(32)
conform_mma_ldmatrix_trans(const uint8_t* tile, int32_t bytes, const uint32_t* rows, const uint32_t* a, float* d) {
    mma_ldmatrix_test<true>(tile, bytes, rows, a, d);
}

// cp.async of one chunk of SIZE bytes per thread, of which the first counts[thread] are read. from, to [threads, SIZE].
template <int SIZE, class Copy>
static __device__ void cp_async_test(const uint8_t* from, const int32_t* counts, uint8_t* to, Copy copy) {
    unsigned char* chunk = dyn_smem() + SIZE * threadIdx.x;
    copy(smem_u32(chunk), from + SIZE * threadIdx.x, counts[threadIdx.x]);
    cp_async_commit();
    cp_async_wait<0>();
    for (int i = 0; i < SIZE; i++) to[SIZE * threadIdx.x + i] = chunk[i];
}

extern "C" __global__ void __launch_bounds__(32)
conform_cp_async16(const uint8_t* from, const int32_t* counts, uint8_t* to) {
    cp_async_test<16>(from, counts, to, [](uint32_t s, const void* g, int n) { cp_async16(s, g, n); });
}
extern "C" __global__ void __launch_bounds__(32)
conform_cp_async8(const uint8_t* from, const int32_t* counts, uint8_t* to) {
    cp_async_test<8>(from, counts, to, [](uint32_t s, const void* g, int n) { cp_async8(s, g, n); });
}
extern "C" __global__ void __launch_bounds__(32)
conform_cp_async4(const uint8_t* from, const int32_t* counts, uint8_t* to) {
    cp_async_test<4>(from, counts, to, [](uint32_t s, const void* g, int n) { cp_async4(s, g, n); });
}

// Three groups of one 4-byte copy per thread, the second group empty; group 0 is read when two may still be under way,
// group 2 when none may. from, to [2, threads].
extern "C" __global__ void __launch_bounds__(32)
conform_cp_async_groups(const uint32_t* from, uint32_t* to) {
    uint32_t* shared = (uint32_t*)dyn_smem();
    const int t = threadIdx.x;
    cp_async4(smem_u32(shared + t), from + t);
    cp_async_commit();
    cp_async_commit();
    cp_async4(smem_u32(shared + 32 + t), from + 32 + t);
    cp_async_commit();
    cp_async_wait<2>();
    to[t] = shared[t];
    cp_async_wait<0>();
    to[32 + t] = shared[32 + t];
}

// Three warps; a number goes from warp 0 to warp 1 past barrier 1, and one and a thousand back past barrier 2, while warp 2
// takes part in neither. to [64]: what each thread of the first two warps got.
extern "C" __global__ void __launch_bounds__(96)
conform_named_barrier(const uint32_t* from, uint32_t* to) {
    uint32_t* shared = (uint32_t*)dyn_smem();
    const int t = threadIdx.x;
    if (t < 32) {
        shared[t] = from[t];
        named_barrier_arrive(1, 64);
        named_barrier_sync(2, 64);
        to[t] = shared[32 + 31 - t];
    } else if (t < 64) {
        named_barrier_sync(1, 64);
        to[t] = shared[63 - t];
        shared[t] = from[t] + 1000;
        named_barrier_sync(2, 64);
    }
}

// 64 threads pass numbers round past an mbarrier of 64 arrivals, for `phases` phases; another one keeps the next phase's
// writes behind this one's reads. A wait for the parity of the phase before the first must not block.
// to [phases, 64]: element (p, t) = 64 * p + (t + 33) % 64.
extern "C" __global__ void __launch_bounds__(64)
conform_mbarrier(int32_t phases, uint32_t* to) {
    const uint32_t written = smem_u32(dyn_smem()) + 256, read = smem_u32(dyn_smem()) + 264;
    uint32_t* shared = (uint32_t*)dyn_smem();
    const int t = threadIdx.x;
    if (t == 0) {
        mbarrier_init(written, 64);
        mbarrier_init(read, 64);
        mbarrier_fence_init();
    }
    __syncthreads();
    for (int p = 0; p < phases; p++) {
        mbarrier_wait(read, (p & 1) ^ 1);
        shared[t] = 64 * p + t;
        mbarrier_arrive(written);
        mbarrier_wait(written, p & 1);
        to[64 * p + t] = shared[(t + 33) % 64];
        mbarrier_arrive(read);
    }
}

// One box of `bytes` bytes by TMA into shared memory that held 0xee throughout, and out as it lies, with the 16 bytes
// behind it. The boxes of both phases go to the same place; the second one is what is written out. Shared memory begins
// with 1024 bytes for the mbarrier. to [bytes + 16]
template <class Load>
static __device__ void tma_test(uint32_t bytes, uint8_t* to, Load load) {
    unsigned char* shared = dyn_smem() + 1024;
    const uint32_t barrier = smem_u32(dyn_smem());
    for (uint32_t i = threadIdx.x; i < bytes + 16; i += blockDim.x) shared[i] = 0xee;
    fence_proxy_async();
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 1);
        mbarrier_fence_init();
    }
    __syncthreads();
    for (uint32_t phase = 0; phase < 2; phase++) {
        if (threadIdx.x == 0) {
            mbarrier_arrive_expect_tx(barrier, bytes);
            load(smem_u32(shared), barrier, phase);
        }
        mbarrier_wait(barrier, phase);
        __syncthreads();  // a thread that is still at this phase's wait must not miss the whole next phase
    }
    for (uint32_t i = threadIdx.x; i < bytes + 16; i += blockDim.x) to[i] = shared[i];
}

// The box at (x, y); the one at (0, 0) comes first.
extern "C" __global__ void __launch_bounds__(64)
conform_tma_2d(const __grid_constant__ CUtensorMap map, int32_t x, int32_t y, uint32_t bytes, uint8_t* to) {
    tma_test(bytes, to, [&](uint32_t shared, uint32_t barrier, uint32_t phase) {
        tma_load_2d(shared, &map, phase ? x : 0, phase ? y : 0, barrier);
    });
}
extern "C" __global__ void __launch_bounds__(64)
conform_tma_3d(const __grid_constant__ CUtensorMap map, int32_t x, int32_t y, int32_t z, uint32_t bytes, uint8_t* to) {
    tma_test(bytes, to, [&](uint32_t shared, uint32_t barrier, uint32_t phase) {
        tma_load_3d(shared, &map, phase ? x : 0, phase ? y : 0, phase ? z : 0, barrier);
    });
}

// One wgmma by a warpgroup. The `a_bytes` of A lie at the beginning of shared memory, those of B behind them (multiples
// of 1024). The descriptors name the bytes `a_start` and `b_start` of the two. d [128, N / 2]: the threads' registers;
// it is read and written.
template <int N, Major B_MAJOR>
static __device__ void wgmma_test(const uint8_t* a, int a_bytes, const uint8_t* b, int b_bytes, uint32_t a_start, uint32_t b_start,
                                  uint32_t b_leading, int accumulate, float* d) {
    unsigned char* shared = dyn_smem();
    fill_shared(shared, a, a_bytes);
    fill_shared(shared + a_bytes, b, b_bytes);
    fence_proxy_async();
    __syncthreads();
    const uint32_t at = smem_u32(shared);
    float acc[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) acc[i] = d[threadIdx.x * (N / 2) + i];
    wgmma_fence();
    wgmma_m64k16<N, B_MAJOR>(acc, wgmma_descriptor(at + a_start, 1024, 1024),
                             wgmma_descriptor(at + a_bytes + b_start, b_leading, 1024), accumulate);
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < N / 2; i++) d[threadIdx.x * (N / 2) + i] = acc[i];
}

extern "C" __global__ void __launch_bounds__(128)
conform_wgmma_n64_k(const uint8_t* a, int32_t a_bytes, const uint8_t* b, int32_t b_bytes, uint32_t a_start, uint32_t b_start,
                    uint32_t b_leading, int32_t accumulate, float* d) {
    wgmma_test<64, Major::K>(a, a_bytes, b, b_bytes, a_start, b_start, b_leading, accumulate, d);
}
extern "C" __global__ void __launch_bounds__(128)
conform_wgmma_n64_mn(const uint8_t* a, int32_t a_bytes, const uint8_t* b, int32_t b_bytes, uint32_t a_start, uint32_t b_start,
                     uint32_t b_leading, int32_t accumulate, float* d) {
    wgmma_test<64, Major::MN>(a, a_bytes, b, b_bytes, a_start, b_start, b_leading, accumulate, d);
}
extern "C" __global__ void __launch_bounds__(128)
conform_wgmma_n128_k(const uint8_t* a, int32_t a_bytes, const uint8_t* b, int32_t b_bytes, uint32_t a_start, uint32_t b_start,
                     uint32_t b_leading, int32_t accumulate, float* d) {
    wgmma_test<128, Major::K>(a, a_bytes, b, b_bytes, a_start, b_start, b_leading, accumulate, d);
}
extern "C" __global__ void __launch_bounds__(128)
conform_wgmma_n128_mn(const uint8_t* a, int32_t a_bytes, const uint8_t* b, int32_t b_bytes, uint32_t a_start, uint32_t b_start,
                      uint32_t b_leading, int32_t accumulate, float* d) {
    wgmma_test<128, Major::MN>(a, a_bytes, b, b_bytes, a_start, b_start, b_leading, accumulate, d);
}
extern "C" __global__ void __launch_bounds__(128)
conform_wgmma_n256_k(const uint8_t* a, int32_t a_bytes, const uint8_t* b, int32_t b_bytes, uint32_t a_start, uint32_t b_start,
                     uint32_t b_leading, int32_t accumulate, float* d) {
    wgmma_test<256, Major::K>(a, a_bytes, b, b_bytes, a_start, b_start, b_leading, accumulate, d);
}
extern "C" __global__ void __launch_bounds__(128)
conform_wgmma_n256_mn(const uint8_t* a, int32_t a_bytes, const uint8_t* b, int32_t b_bytes, uint32_t a_start, uint32_t b_start,
                      uint32_t b_leading, int32_t accumulate, float* d) {
    wgmma_test<256, Major::MN>(a, a_bytes, b, b_bytes, a_start, b_start, b_leading, accumulate, d);
}

// A [64, 64] and B [64, 64] (N x K), both K-major tiles of 8192 bytes, in two groups of two products each. `first`
// [128, 32]: A * B over k < 32, read while the second group may be under way; `whole` [128, 32]: over all k.
extern "C" __global__ void __launch_bounds__(128)
conform_wgmma_groups(const uint8_t* a, const uint8_t* b, float* first, float* whole) {
    unsigned char* shared = dyn_smem();
    fill_shared(shared, a, 8192);
    fill_shared(shared + 8192, b, 8192);
    fence_proxy_async();
    __syncthreads();
    const uint32_t at = smem_u32(shared);
    float half[32], rest[32];
    // Neither first product may take these for its beginning.
    for (float& each : half) each = 1000;
    for (float& each : rest) each = 1000;
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 2; k++)
        wgmma_m64k16<64, Major::K>(half, wgmma_descriptor(at + 32 * k, 1024, 1024),
                                   wgmma_descriptor(at + 8192 + 32 * k, 1024, 1024), k > 0);
    wgmma_commit();
#pragma unroll
    for (int k = 2; k < 4; k++)
        wgmma_m64k16<64, Major::K>(rest, wgmma_descriptor(at + 32 * k, 1024, 1024),
                                   wgmma_descriptor(at + 8192 + 32 * k, 1024, 1024), k > 2);
    wgmma_commit();
    wgmma_wait<1>();
#pragma unroll
    for (int i = 0; i < 32; i++) first[threadIdx.x * 32 + i] = half[i];
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < 32; i++) whole[threadIdx.x * 32 + i] = half[i] + rest[i];
}

// y = 2^x and y = 1 / x, element by element.
extern "C" __global__ void __launch_bounds__(32)
conform_exp2(const float* x, float* y, int32_t n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = exp2_approx(x[i]);
}
extern "C" __global__ void __launch_bounds__(32)
conform_rcp(const float* x, float* y, int32_t n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = rcp_approx(x[i]);
}

// philox.cuh: the words [n, 4] of n counters [n, 4], each under its own key [n, 2].
extern "C" __global__ void __launch_bounds__(32)
conform_philox(const uint32_t* keys, const uint32_t* counters, uint32_t* words, int32_t n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const uint32_t *key = keys + 2 * i, *of = counters + 4 * i;
        const uint4 random = philox(key[0], key[1], make_uint4(of[0], of[1], of[2], of[3]));
        const uint32_t all[4] = {random.x, random.y, random.z, random.w};
        for (int word = 0; word < 4; word++) words[4 * i + word] = all[word];
    }
}
