// Barriers beside __syncthreads: the block's named barriers, and mbarriers in shared memory (compute capability 9.0).
#pragma once
#include "target.cuh"

// bar.sync: waits until `threads` threads (a multiple of 32) have come to barrier `id` (1 to 15; 0 is __syncthreads').
// Orders shared and global memory among them.
ARCH_FN void named_barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// bar.arrive: counts this thread as come to barrier `id`, without waiting; `threads` as in named_barrier_sync.
ARCH_FN void named_barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// An mbarrier is 8 bytes of shared memory, 8-byte aligned. A phase of it completes when `count` arrivals and all the bytes
// expected in it have come; the next phase then begins by itself. Phases are numbered from 0 and known by their parity.

// mbarrier.init.shared.b64: by one thread, before the others use it: mbarrier_fence_init and a barrier stand between.
ARCH_FN void mbarrier_init(uint32_t barrier, uint32_t count) {
#if ARCH_HAS_TMA
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
#else
    __trap();
#endif
}

// fence.mbarrier_init.release.cluster: makes mbarrier_init visible to the asynchronous copies.
ARCH_FN void mbarrier_fence_init() {
#if ARCH_HAS_TMA
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
    __trap();
#endif
}

// mbarrier.arrive.shared.b64: one arrival in the current phase; releases what this thread did before.
ARCH_FN void mbarrier_arrive(uint32_t barrier) {
#if ARCH_HAS_TMA
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
#else
    __trap();
#endif
}

// mbarrier.arrive.expect_tx.shared.b64: one arrival, and `bytes` more that copies have to bring before the phase completes.
ARCH_FN void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
#if ARCH_HAS_TMA
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
#else
    __trap();
#endif
}

// mbarrier.try_wait.parity.shared.b64 in a loop: waits while the current phase has parity `parity`, that is, until the
// phase of that parity has completed. On a fresh barrier parity 0 waits and parity 1 doesn't.
ARCH_FN void mbarrier_wait(uint32_t barrier, uint32_t parity) {
#if ARCH_HAS_TMA
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(barrier), "r"(parity) : "memory");
#else
    __trap();
#endif
}

// fence.proxy.async.shared::cta: what this thread wrote to shared memory becomes visible to wgmma and TMA, which read by
// another way than ordinary loads. Stands between such writes and the barrier after which those instructions are issued.
ARCH_FN void fence_proxy_async() {
#if ARCH_HAS_TMA
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
    __trap();
#endif
}
