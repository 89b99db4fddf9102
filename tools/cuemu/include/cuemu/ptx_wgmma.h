// wgmma.
#pragma once
#include "fiber.h"

enum class Major { K, MN };

namespace cuemu {
CUEMU_API void wgmma_open(const char* file, int line);
CUEMU_API void wgmma_issue(float* d, int n, bool b_n_innermost, uint64_t a, uint64_t b, bool accumulate,
                           const char* file, int line);
CUEMU_API void wgmma_close_group(const char* file, int line);
CUEMU_API void wgmma_await(uint32_t latest, const char* file, int line);
}  // namespace cuemu

static inline void wgmma_fence(CUEMU_WHERE) { cuemu::wgmma_open(CUEMU_HERE); }
static inline void wgmma_commit(CUEMU_WHERE) { cuemu::wgmma_close_group(CUEMU_HERE); }
template <int N>
static inline void wgmma_wait(CUEMU_WHERE) {
    cuemu::wgmma_await(N, CUEMU_HERE);
}
template <int N, Major B_MAJOR>
static inline void wgmma_m64k16(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate, CUEMU_WHERE) {
    static_assert(N == 64 || N == 128 || N == 256, "wgmma_m64k16 has N = 64, 128 and 256");
    cuemu::wgmma_issue(d, N, B_MAJOR == Major::MN, a, b, accumulate != 0, CUEMU_HERE);
}
