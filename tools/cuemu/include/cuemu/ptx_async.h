// cp.async, named barriers, mbarriers, TMA.
#pragma once
#include "fiber.h"

struct __align__(64) CUtensorMap { uint64_t opaque[16]; };

namespace cuemu {
CUEMU_API void cp_async(uint32_t to, const void* from, int bytes, int size, const char* file, int line);
CUEMU_API void cp_async_close_group();
CUEMU_API void cp_async_await(uint32_t latest, const char* file, int line);
CUEMU_API void named_barrier(int id, int threads, bool wait, const char* file, int line);
CUEMU_API void mbarrier_begin(uint32_t address, uint32_t count, const char* file, int line);
/// Makes the initialisations of mbarriers by this thread visible to asynchronous copies.
CUEMU_API void mbarrier_publish(const char* file, int line);
CUEMU_API void mbarrier_arrival(uint32_t address, uint32_t bytes, const char* file, int line);
CUEMU_API void mbarrier_await(uint32_t address, uint32_t parity, const char* file, int line);
CUEMU_API void proxy_fence(const char* file, int line);
/// `start`: 3 coordinates, of which the map's rank are used.
CUEMU_API void tma_load(uint32_t to, const void* map, uint32_t rank, const int32_t* start, uint32_t barrier,
                        const char* file, int line);
}  // namespace cuemu

static inline void cp_async16(uint32_t to, const void* from, int bytes = 16, CUEMU_WHERE) {
    cuemu::cp_async(to, from, bytes, 16, CUEMU_HERE);
}
static inline void cp_async8(uint32_t to, const void* from, int bytes = 8, CUEMU_WHERE) {
    cuemu::cp_async(to, from, bytes, 8, CUEMU_HERE);
}
static inline void cp_async4(uint32_t to, const void* from, int bytes = 4, CUEMU_WHERE) {
    cuemu::cp_async(to, from, bytes, 4, CUEMU_HERE);
}
static inline void cp_async_commit() { cuemu::cp_async_close_group(); }
template <int N>
static inline void cp_async_wait(CUEMU_WHERE) {
    cuemu::cp_async_await(N, CUEMU_HERE);
}

static inline void named_barrier_sync(int id, int threads, CUEMU_WHERE) {
    cuemu::named_barrier(id, threads, true, CUEMU_HERE);
}
static inline void named_barrier_arrive(int id, int threads, CUEMU_WHERE) {
    cuemu::named_barrier(id, threads, false, CUEMU_HERE);
}

static inline void mbarrier_init(uint32_t barrier, uint32_t count, CUEMU_WHERE) {
    cuemu::mbarrier_begin(barrier, count, CUEMU_HERE);
}
static inline void mbarrier_fence_init(CUEMU_WHERE) { cuemu::mbarrier_publish(CUEMU_HERE); }
static inline void mbarrier_arrive(uint32_t barrier, CUEMU_WHERE) { cuemu::mbarrier_arrival(barrier, 0, CUEMU_HERE); }
static inline void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes, CUEMU_WHERE) {
    cuemu::mbarrier_arrival(barrier, bytes, CUEMU_HERE);
}
static inline void mbarrier_wait(uint32_t barrier, uint32_t parity, CUEMU_WHERE) {
    cuemu::mbarrier_await(barrier, parity, CUEMU_HERE);
}
static inline void fence_proxy_async(CUEMU_WHERE) { cuemu::proxy_fence(CUEMU_HERE); }

static inline void tma_load_2d(uint32_t to, const CUtensorMap* map, int x, int y, uint32_t barrier, CUEMU_WHERE) {
    const int32_t start[3] = {x, y, 0};
    cuemu::tma_load(to, map, 2, start, barrier, CUEMU_HERE);
}
static inline void tma_load_3d(uint32_t to, const CUtensorMap* map, int x, int y, int z, uint32_t barrier,
                               CUEMU_WHERE) {
    const int32_t start[3] = {x, y, z};
    cuemu::tma_load(to, map, 3, start, barrier, CUEMU_HERE);
}
