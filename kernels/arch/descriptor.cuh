// How wgmma is told where an operand lies. Plain arithmetic, so both compilers take it from here.
#pragma once

// A shared-memory matrix descriptor with 128-byte swizzle (layout type 1), for the element that stands at `address`.
// Bits 0-13: address / 16; 16-29: leading byte offset / 16; 32-45: stride byte offset / 16; 49-51: base offset, 0, because
// every tile begins at a multiple of 1024 bytes; 62-63: layout type.
// K-major: a tile is 8 rows of 128 bytes (64 elements of K); `stride_bytes` from one group of 8 rows to the next;
//   `leading_bytes` is not used (1024 is as good as any). The next 16 of K: `address` + 32.
// MN-major: a tile is 8 rows (8 of K) of 128 bytes (64 elements of N); `leading_bytes` from one tile of 64 of N to the
//   next; `stride_bytes` from one group of 8 of K to the next.
static __device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t address, uint32_t leading_bytes, uint32_t stride_bytes) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)(leading_bytes >> 4) << 16 |
           (uint64_t)(stride_bytes >> 4) << 32 | (uint64_t)1 << 62;
}
