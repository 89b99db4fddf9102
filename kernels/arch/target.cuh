// What the machine that is compiled for can do, and shared memory's addresses.
#pragma once

#define ARCH_FN static __device__ __forceinline__

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define ARCH_HAS_TMA 1
#else
#define ARCH_HAS_TMA 0
#endif
// Only the architecture-specific target sm_90a has wgmma: neither sm_90 nor later machines do.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define ARCH_HAS_WGMMA 1
#else
#define ARCH_HAS_WGMMA 0
#endif

// The block's dynamic shared memory, 1024-byte aligned. Whatever has a shared address (matrices for ldmatrix, targets of
// cp.async and TMA, operands of wgmma, mbarriers) lives here, not in static `__shared__` variables.
ARCH_FN unsigned char* dyn_smem() {
    extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];
    return dynamic_shared_memory;
}

// The 32-bit address, in the shared window, of a generic pointer into dynamic shared memory (cvta.to.shared).
ARCH_FN uint32_t smem_u32(const void* pointer) { return (uint32_t)__cvta_generic_to_shared(pointer); }

// A pause inside a loop that waits for another thread (nanosleep). Every such loop has one: the emulator's threads take
// turns, and this is where the turn passes.
ARCH_FN void spin_hint() { __nanosleep(20); }
