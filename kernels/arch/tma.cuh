// Tensor memory accelerator: boxes of a global tensor into shared memory (compute capability 9.0).
//
// `map` comes from cuTensorMapEncodeTiled and is a `const __grid_constant__ CUtensorMap` parameter of the kernel. One
// thread issues the copy; the bytes of the whole box (box elements * element size, also of a box that sticks out) are
// counted by the mbarrier `barrier`, whose phase was told to expect them. `to`: shared address, aligned to 128 bytes, or
// to one repeat of the map's swizzle: 256 (32B), 512 (64B), 1024 (128B). `x`, `y`, `z`: the box's first element, innermost
// dimension first; they may be negative or beyond the end: elements outside the tensor become zeros. `x` is a whole number of 16
// bytes: with another one an H100 meets an illegal instruction.
//
// The box lies densely in shared memory, innermost dimension first, with the 16-byte chunks of the 128-byte lines swapped
// according to the swizzle (a = byte address within shared memory): 128B: a ^= (a >> 3) & 0x70; 64B: a ^= (a >> 3) & 0x30;
// 32B: a ^= (a >> 3) & 0x10.
#pragma once
#include "target.cuh"

// cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes
ARCH_FN void tma_load_2d(uint32_t to, const CUtensorMap* map, int x, int y, uint32_t barrier) {
#if ARCH_HAS_TMA
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2,%3}], [%4];"
                 ::"r"(to), "l"(map), "r"(x), "r"(y), "r"(barrier) : "memory");
#else
    __trap();
#endif
}

// cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes
ARCH_FN void tma_load_3d(uint32_t to, const CUtensorMap* map, int x, int y, int z, uint32_t barrier) {
#if ARCH_HAS_TMA
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2,%3,%4}], [%5];"
                 ::"r"(to), "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier) : "memory");
#else
    __trap();
#endif
}
