// Warpgroup matrix product (compute capability 9.0, target sm_90a): D[64, N] += A[64, 16] * B[16, N] by four warps, bf16
// in, f32 out, A and B in shared memory. Asynchronous: the accumulators may not be touched between wgmma_m64k16 and the
// wgmma_wait for its group, nor the operands be overwritten.
//
// Order: wgmma_fence, some wgmma_m64k16, wgmma_commit, wgmma_wait. Operands written by ordinary stores need
// fence_proxy_async and a barrier before; TMA's need only the mbarrier's wait.
#pragma once
#include "target.cuh"

// How B lies in shared memory: K innermost ([N, 16] rows), or N innermost ([16, N] rows).
enum class Major { K, MN };

// wgmma.fence.sync.aligned: before the first wgmma of a kernel, and wherever the accumulators were written by other means.
ARCH_FN void wgmma_fence() {
#if ARCH_HAS_WGMMA
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
    __trap();
#endif
}

// wgmma.commit_group.sync.aligned: closes the warpgroup's group of products.
ARCH_FN void wgmma_commit() {
#if ARCH_HAS_WGMMA
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
    __trap();
#endif
}

// wgmma.wait_group.sync.aligned: waits until at most the N latest groups are under way.
template <int N>
ARCH_FN void wgmma_wait() {
#if ARCH_HAS_WGMMA
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#else
    __trap();
#endif
}

// The operands of the asm statement: ten registers' names, eight accumulators.
#define ARCH_TEN(tens)                                                                              \
    "%" #tens "0,%" #tens "1,%" #tens "2,%" #tens "3,%" #tens "4,%" #tens "5,%" #tens "6,%" #tens "7,%" #tens "8,%" #tens "9"
#define ARCH_ACC8(d, i)                                                                             \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define ARCH_ACC32(d, i) ARCH_ACC8(d, i), ARCH_ACC8(d, i + 8), ARCH_ACC8(d, i + 16), ARCH_ACC8(d, i + 24)

// wgmma.mma_async.sync.aligned.m64nNk16.f32.bf16.bf16 for N = 64, 128, 256, by the 128 threads of a warpgroup (four warps,
// the first one's index a multiple of 4). `a` is K-major, `b` as B_MAJOR says (descriptors of descriptor.cuh).
// `accumulate` = 0 takes D as 0.
// d[4*j + e] of a lane of warp w of the warpgroup: row 16*w + g + 8*(e / 2), column 8*j + 2*t + e % 2, with g = lane / 4,
// t = lane % 4. The order of summation is the hardware's own, and another one than that of mma.sync.
template <int N, Major B_MAJOR>
ARCH_FN void wgmma_m64k16(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {
    static_assert(N == 64 || N == 128 || N == 256, "wgmma_m64k16 has N = 64, 128 and 256");
#if ARCH_HAS_WGMMA
    if constexpr (N == 64) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" ARCH_TEN() "," ARCH_TEN(1) "," ARCH_TEN(2)
            ",%30,%31}, %32, %33, p, 1, 1, 0, %35;\n}"
            : ARCH_ACC32(d, 0) : "l"(a), "l"(b), "r"(accumulate), "n"(B_MAJOR == Major::MN));
    } else if constexpr (N == 128) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" ARCH_TEN() "," ARCH_TEN(1) "," ARCH_TEN(2) ","
            ARCH_TEN(3) "," ARCH_TEN(4) "," ARCH_TEN(5) ",%60,%61,%62,%63}, %64, %65, p, 1, 1, 0, %67;\n}"
            : ARCH_ACC32(d, 0), ARCH_ACC32(d, 32) : "l"(a), "l"(b), "r"(accumulate), "n"(B_MAJOR == Major::MN));
    } else {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" ARCH_TEN() "," ARCH_TEN(1) "," ARCH_TEN(2) ","
            ARCH_TEN(3) "," ARCH_TEN(4) "," ARCH_TEN(5) "," ARCH_TEN(6) "," ARCH_TEN(7) "," ARCH_TEN(8) "," ARCH_TEN(9) ","
            ARCH_TEN(10) "," ARCH_TEN(11) ",%120,%121,%122,%123,%124,%125,%126,%127}, %128, %129, p, 1, 1, 0, %131;\n}"
            : ARCH_ACC32(d, 0), ARCH_ACC32(d, 32), ARCH_ACC32(d, 64), ARCH_ACC32(d, 96)
            : "l"(a), "l"(b), "r"(accumulate), "n"(B_MAJOR == Major::MN));
    }
#else
    __trap();
#endif
}

#undef ARCH_TEN
#undef ARCH_ACC8
#undef ARCH_ACC32
