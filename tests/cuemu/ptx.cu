// Kernels over the wrappers of arch.cuh, right if `bug` is 0 and with one bug each if it's 1. One block of 128 threads; `p`
// holds 8192 floats, each its own index, and `map` is `p` as rows of 64 in boxes of 8 rows of 32, with 128-byte swizzle.
// The threads write the first 128 floats. The comments that begin with @ name lines for the tests.
#include "arch.cuh"

#define PLANT extern "C" __global__ void __launch_bounds__(128)
#define MAP const __grid_constant__ CUtensorMap

// Shared memory beyond all tiles.
constexpr uint32_t BARRIER = 16384;

static __device__ float* shared_floats() { return reinterpret_cast<float*>(dyn_smem()); }

// ldmatrix and mma.

PLANT ldmatrix_misaligned(MAP map, float* p, int bug) {
    shared_floats()[threadIdx.x] = 1;
    __syncthreads();
    uint32_t r[1];
    ldmatrix_x1(r, smem_u32(dyn_smem()) + threadIdx.x % 8 * 16 + 8 * bug);  // @ldmatrix_misaligned
    p[threadIdx.x] = __uint_as_float(r[0] & 0xffff0000);
}

PLANT ldmatrix_overrun(MAP map, float* p, int bug) {
    shared_floats()[threadIdx.x] = 1;
    __syncthreads();
    uint32_t r[4];
    ldmatrix_x4(r, smem_u32(dyn_smem()) + threadIdx.x % 32 * 16 + (bug ? 32768 : 0));  // @ldmatrix_overrun
    p[threadIdx.x] = __uint_as_float(r[0] & 0xffff0000);
}

PLANT ldmatrix_unordered(MAP map, float* p, int bug) {
    shared_floats()[threadIdx.x] = 1;  // @ldmatrix_unordered write
    if (!bug) __syncthreads();
    uint32_t r[4];
    ldmatrix_x4(r, smem_u32(dyn_smem()) + threadIdx.x % 32 * 16);  // @ldmatrix_unordered
    p[threadIdx.x] = __uint_as_float(r[3] & 0xffff0000);
}

PLANT ldmatrix_partial_warp(MAP map, float* p, int bug) {
    shared_floats()[threadIdx.x] = 1;
    __syncthreads();
    p[threadIdx.x] = 1;
    if (bug && threadIdx.x % 32 == 7) return;
    uint32_t r[4];
    ldmatrix_x4(r, smem_u32(dyn_smem()) + threadIdx.x % 32 * 16);  // @ldmatrix_partial_warp
    p[threadIdx.x] = __uint_as_float(r[0] & 0xffff0000);
}

// cp.async.

PLANT cp_async_misaligned(MAP map, float* p, int bug) {
    const int t = threadIdx.x;
    cp_async16(smem_u32(dyn_smem()) + 16 * t, p + 4 * t + 512 + bug);  // @cp_async_misaligned
    cp_async_commit();
    cp_async_wait<0>();
    p[t] = shared_floats()[4 * t];
}

PLANT cp_async_size(MAP map, float* p, int bug) {
    const int t = threadIdx.x;
    cp_async8(smem_u32(dyn_smem()) + 8 * t, p + 512, bug ? 12 : 8);  // @cp_async_size
    cp_async_commit();
    cp_async_wait<0>();
    p[t] = shared_floats()[2 * t + 1];
}

// Only the thread that copied may read after its wait; the others need a barrier.
PLANT cp_async_barrier(MAP map, float* p, int bug) {
    const int t = threadIdx.x;
    cp_async4(smem_u32(dyn_smem()) + 4 * t, p + 512 + t);  // @cp_async_barrier copy
    cp_async_commit();
    cp_async_wait<0>();
    if (!bug) __syncthreads();
    p[t] = shared_floats()[127 - t];  // @cp_async_barrier read
}

// Named barriers.

PLANT named_barrier_zero(MAP map, float* p, int bug) {
    named_barrier_sync(bug ? 0 : 1, 128);  // @named_barrier_zero
    p[threadIdx.x] = 1;
}

// The second half reads what the first one writes.
PLANT named_barrier_order(MAP map, float* p, int bug) {
    const int t = threadIdx.x;
    if (t < 64) {
        shared_floats()[t] = t;  // @named_barrier_order write
        named_barrier_arrive(1, 128);
        p[t] = t;
    } else {
        if (bug) {
            named_barrier_arrive(1, 128);
        } else {
            named_barrier_sync(1, 128);
        }
        p[t] = shared_floats()[t - 64];  // @named_barrier_order read
    }
}

// mbarriers.

static __device__ uint32_t make_mbarrier(uint32_t count) {
    const uint32_t barrier = smem_u32(dyn_smem()) + BARRIER;
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, count);  // @make_mbarrier
        mbarrier_fence_init();
    }
    __syncthreads();
    return barrier;
}

PLANT mbarrier_arrivals(MAP map, float* p, int bug) {
    const uint32_t barrier = make_mbarrier(bug ? 32 : 128);
    shared_floats()[threadIdx.x] = threadIdx.x;
    mbarrier_arrive(barrier);
    // The phase of a barrier of 32 is over and over; with an expected byte more it stays open.
    if (bug && threadIdx.x < 32) mbarrier_arrive_expect_tx(barrier, 16);
    mbarrier_wait(barrier, 0);
    p[threadIdx.x] = shared_floats()[127 - threadIdx.x];
}

PLANT mbarrier_parity(MAP map, float* p, int bug) {
    const uint32_t barrier = make_mbarrier(128);
    shared_floats()[threadIdx.x] = threadIdx.x;  // @mbarrier_parity write
    mbarrier_arrive(barrier);
    mbarrier_wait(barrier, bug);
    p[threadIdx.x] = shared_floats()[127 - threadIdx.x];  // @mbarrier_parity read
}

PLANT mbarrier_uninitialised(MAP map, float* p, int bug) {
    const uint32_t barrier = bug ? smem_u32(dyn_smem()) : make_mbarrier(128);
    mbarrier_arrive(barrier);  // @mbarrier_uninitialised
    mbarrier_wait(barrier, 0);
    p[threadIdx.x] = 1;
}

PLANT mbarrier_twice(MAP map, float* p, int bug) {
    const uint32_t barrier = make_mbarrier(128);
    if (bug && threadIdx.x == 0) mbarrier_init(barrier, 64);  // @mbarrier_twice
    mbarrier_arrive(barrier);
    mbarrier_wait(barrier, 0);
    p[threadIdx.x] = 1;
}

// TMA.

// Element (row, column) of the box in shared memory.
static __device__ float box_element(int row, int column, bool swizzled) {
    const int chunk = swizzled ? column / 4 ^ row : column / 4;
    return shared_floats()[row * 32 + chunk * 4 + column % 4];  // @box_element
}

struct TmaBugs {
    bool wait, alignment, start, barrier, fence, bytes, swizzle;
};

static __device__ void tma(const CUtensorMap* map, float* p, TmaBugs bug) {
    const uint32_t shared = smem_u32(dyn_smem()), barrier = shared + BARRIER;
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 1);
        if (!bug.fence) mbarrier_fence_init();
        mbarrier_arrive_expect_tx(barrier, bug.bytes ? 2048 : 1024);
        tma_load_2d(shared + 128 * bug.alignment, map, bug.start ? 2 : 0, 8, barrier + 8 * bug.barrier);  // @tma
    }
    __syncthreads();
    if (!bug.wait) mbarrier_wait(barrier, 0);  // @tma wait
    p[threadIdx.x] = box_element(threadIdx.x / 32, threadIdx.x % 32, !bug.swizzle);
}

PLANT tma_wait(MAP map, float* p, int bug) { tma(&map, p, {.wait = bool(bug)}); }
PLANT tma_misaligned(MAP map, float* p, int bug) { tma(&map, p, {.alignment = bool(bug)}); }
PLANT tma_start(MAP map, float* p, int bug) { tma(&map, p, {.start = bool(bug)}); }
PLANT tma_no_barrier(MAP map, float* p, int bug) { tma(&map, p, {.barrier = bool(bug)}); }
PLANT tma_no_fence(MAP map, float* p, int bug) { tma(&map, p, {.fence = bool(bug)}); }
PLANT tma_bytes(MAP map, float* p, int bug) { tma(&map, p, {.bytes = bool(bug)}); }
PLANT tma_swizzle(MAP map, float* p, int bug) { tma(&map, p, {.swizzle = bool(bug)}); }
PLANT tma_wrong_rank(MAP map, float* p, int bug) {
    if (bug && threadIdx.x == 0) {
        make_mbarrier(1);
        tma_load_3d(smem_u32(dyn_smem()), &map, 0, 0, 0, smem_u32(dyn_smem()) + BARRIER);  // @tma_wrong_rank
    }
    p[threadIdx.x] = 1;
}

// Two boxes one after the other through one stage, which must be free before the second one is asked for.
PLANT tma_stage(MAP map, float* p, int bug) {
    const uint32_t shared = smem_u32(dyn_smem()), barriers = shared + BARRIER;
    if (threadIdx.x == 0) {
        mbarrier_init(barriers, 1);
        mbarrier_init(barriers + 8, 1);
        mbarrier_fence_init();
    }
    __syncthreads();
    float sum = 0;
    for (int round = 0; round < 2; round++) {
        if (threadIdx.x == 0) {
            mbarrier_arrive_expect_tx(barriers + 8 * round, 1024);
            tma_load_2d(shared, &map, 0, 8 + 8 * round, barriers + 8 * round);  // @tma_stage
        }
        mbarrier_wait(barriers + 8 * round, 0);
        sum += box_element(threadIdx.x / 32, threadIdx.x % 32, true);
        if (!bug) __syncthreads();
    }
    p[threadIdx.x] = sum;
}

// wgmma, with ones everywhere: every element of D is 16.

static __device__ void fill_tiles(uint32_t pair) {
    uint32_t* words = reinterpret_cast<uint32_t*>(dyn_smem());
    for (int i = threadIdx.x; i < 4096; i += 128) words[i] = pair;  // @fill_tiles
}

struct WgmmaBugs {
    bool wait, stage, fence, proxy, write, unawaited, layout, refence;
};

static __device__ void wgmma(float* p, WgmmaBugs bug) {
    fill_tiles(0x3f803f80);
    if (!bug.proxy) fence_proxy_async();
    __syncthreads();
    const uint32_t shared = smem_u32(dyn_smem());
    const uint64_t a = wgmma_descriptor(shared, 1024, 1024), b = wgmma_descriptor(shared + 8192, 1024, 1024);
    float d[32];
    for (int i = 0; i < 32; i++) d[i] = 0;
    if (!bug.fence) wgmma_fence();
    wgmma_m64k16<64, Major::K>(d, bug.layout ? a & ~(3ull << 62) : a, b, 1);  // @wgmma
    wgmma_commit();
    float early = d[0];
    if (bug.write) d[5] = 0;
    if (bug.unawaited) return;
    if (!bug.stage) wgmma_wait<0>();  // @wgmma wait
    __syncthreads();
    if (bug.stage) {
        fill_tiles(0x40004000);
        wgmma_wait<0>();
    }
    if (bug.refence) {
        d[0] += 1;
        wgmma_m64k16<64, Major::K>(d, a, b, 1);  // @wgmma again
        wgmma_commit();
        wgmma_wait<0>();
    }
    p[threadIdx.x] = bug.wait ? early : d[0];
}

PLANT wgmma_wait_late(MAP map, float* p, int bug) { wgmma(p, {.wait = bool(bug)}); }
PLANT wgmma_stage(MAP map, float* p, int bug) { wgmma(p, {.stage = bool(bug)}); }
PLANT wgmma_no_fence(MAP map, float* p, int bug) { wgmma(p, {.fence = bool(bug)}); }
PLANT wgmma_proxy(MAP map, float* p, int bug) { wgmma(p, {.proxy = bool(bug)}); }
PLANT wgmma_write(MAP map, float* p, int bug) { wgmma(p, {.write = bool(bug)}); }
PLANT wgmma_unawaited(MAP map, float* p, int bug) { wgmma(p, {.unawaited = bool(bug)}); }
PLANT wgmma_layout(MAP map, float* p, int bug) { wgmma(p, {.layout = bool(bug)}); }
PLANT wgmma_refence(MAP map, float* p, int bug) { wgmma(p, {.refence = bool(bug)}); }

// Two products in groups of their own; the second one's accumulators are read when only the first group need be done.
PLANT wgmma_group(MAP map, float* p, int bug) {
    fill_tiles(0x3f803f80);
    fence_proxy_async();
    __syncthreads();
    const uint32_t shared = smem_u32(dyn_smem());
    const uint64_t a = wgmma_descriptor(shared, 1024, 1024), b = wgmma_descriptor(shared + 8192, 1024, 1024);
    float d[32], e[32];
    wgmma_fence();
    wgmma_m64k16<64, Major::K>(d, a, b, 0);
    wgmma_commit();
    wgmma_m64k16<64, Major::K>(e, a, b, 0);
    wgmma_commit();
    if (bug) {
        wgmma_wait<1>();
    } else {
        wgmma_wait<0>();
    }
    p[threadIdx.x] = d[31] + e[31];
    wgmma_wait<0>();
}

// What a device of compute capability below 9.0 lacks: by `bug`, all of them there.

PLANT cc_mbarrier(MAP map, float* p, int bug) {
    if (bug) make_mbarrier(128);
    p[threadIdx.x] = 1;
}
PLANT cc_tma(MAP map, float* p, int bug) {
    if (bug) tma_load_2d(smem_u32(dyn_smem()), &map, 0, 0, 0);  // @cc_tma
    p[threadIdx.x] = 1;
}
PLANT cc_wgmma(MAP map, float* p, int bug) {
    if (bug) wgmma_fence();  // @cc_wgmma
    p[threadIdx.x] = 1;
}
PLANT cc_proxy(MAP map, float* p, int bug) {
    if (bug) fence_proxy_async();  // @cc_proxy
    p[threadIdx.x] = 1;
}

// Sums of 16 products by mma.sync, by wgmma, and by a plain loop: of factors p[32 s] to p[32 s + 15] and the 16 behind
// them, for s < 128. Their first element goes to p[4096 + 3 s] and the two behind it.
PLANT sums(MAP map, float* p, int bug) {
    const int t = threadIdx.x, lane = t % 32;
    unsigned short* tiles = reinterpret_cast<unsigned short*>(dyn_smem());
    const uint32_t shared = smem_u32(dyn_smem());
    for (int s = 0; s < 128; s++) {
        const float *x = p + 32 * s, *y = x + 16;
        const auto bits = [](float v) { return __float_as_uint(v) >> 16; };
        // Only row 0 of A and column 0 of B aren't zero; no swizzle moves them.
        fill_tiles(0);
        __syncthreads();
        if (t < 16) {
            tiles[t] = bits(x[t]);
            tiles[4096 + t] = bits(y[t]);
        }
        fence_proxy_async();
        __syncthreads();
        float d[32];
        for (int i = 0; i < 32; i++) d[i] = 0;
        wgmma_fence();
        wgmma_m64k16<64, Major::K>(d, wgmma_descriptor(shared, 1024, 1024), wgmma_descriptor(shared + 8192, 1024, 1024), 1);
        wgmma_commit();
        wgmma_wait<0>();
        const int k = 2 * (lane % 4);
        const bool first = lane < 4;
        const auto two = [&](const float* v, int k) { return first ? bits(v[k]) | bits(v[k + 1]) << 16 : 0; };
        const uint32_t a[4] = {two(x, k), 0, two(x, k + 8), 0};
        float c[4] = {0, 0, 0, 0};
        mma_m16n8k16_bf16(c, a, two(y, k), two(y, k + 8));
        if (t == 0) {
            float plain = 0;
            for (int i = 0; i < 16; i++) plain += x[i] * y[i];
            p[4096 + 3 * s] = c[0];
            p[4096 + 3 * s + 1] = d[0];
            p[4096 + 3 * s + 2] = plain;
        }
        __syncthreads();
    }
}
