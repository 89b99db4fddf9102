// The built-in variables. Macros, so no member of a struct may have their names.
#pragma once
#include "fiber.h"

namespace cuemu {

static inline dim3 extent(const uint32_t (&n)[3]) { return {n[0], n[1], n[2]}; }

#ifdef CUEMU_CHECK
// Functions, so that the checks have one call to skip and not several loads. They give a fiber the same value always.
CUEMU_API uint3 thread_index() __attribute__((const));
CUEMU_API uint3 block_index() __attribute__((const));
CUEMU_API dim3 block_extent() __attribute__((const));
CUEMU_API dim3 grid_extent() __attribute__((const));
#else
static inline uint3 thread_index() { return cur->tid; }
static inline uint3 block_index() { return cur->block->bid; }
static inline dim3 block_extent() { return extent(cur->block->launch->block); }
static inline dim3 grid_extent() { return extent(cur->block->launch->grid); }
#endif

}  // namespace cuemu

static constexpr int warpSize = 32;
#define threadIdx (cuemu::thread_index())
#define blockIdx (cuemu::block_index())
#define blockDim (cuemu::block_extent())
#define gridDim (cuemu::grid_extent())
