// Block-wide barriers.
#pragma once
#include "fiber.h"

namespace cuemu {
/// Waits at barrier `id` for `expected` threads (0: all that have not returned) and gives the reduction of their
/// predicates.
CUEMU_API BarrierResult barrier_sync(int id, uint32_t expected, int predicate, const char* file, int line);
/// Counts the thread as come to barrier `id`, without waiting. What it did before is ordered only by who calls this.
CUEMU_API void barrier_arrive(int id, uint32_t expected, const char* file, int line);
}  // namespace cuemu

static inline void __syncthreads(CUEMU_WHERE) { cuemu::barrier_sync(0, 0, 0, CUEMU_HERE); }
static inline int __syncthreads_or(int p, CUEMU_WHERE) { return cuemu::barrier_sync(0, 0, p, CUEMU_HERE).any; }
static inline int __syncthreads_and(int p, CUEMU_WHERE) { return cuemu::barrier_sync(0, 0, p, CUEMU_HERE).all; }
static inline int __syncthreads_count(int p, CUEMU_WHERE) { return cuemu::barrier_sync(0, 0, p, CUEMU_HERE).count; }
