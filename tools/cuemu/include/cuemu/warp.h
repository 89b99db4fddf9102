// Warp collectives: the lanes named by a mask leave pointers to their arguments, and the last one to arrive does the
// operation for all, writing the results straight to the lanes' stacks.
#pragma once
#include "fiber.h"

namespace cuemu {

/// A kind of collective. Lanes that meet must have reached the same kind on the same source line.
struct Collective {
    /// Runs on the last lane to arrive; null: nothing to do.
    void (*run)(Warp*, Rendezvous*);
    /// Whether it orders the lanes' memory accesses. Of the plain ones only __syncwarp does.
    bool orders;
    const char* name;
};

CUEMU_API void warp_rendezvous(uint32_t mask, const Collective* kind, void* arg, const char* file, int line);

struct ShuffleArg {
    uint64_t value, result;
    uint32_t source;  // lane
};
CUEMU_API extern const Collective SYNCWARP, SHUFFLE;
CUEMU_API uint32_t warp_ballot(uint32_t mask, bool predicate, const char* file, int line);

template <class T>
static inline T shuffle(uint32_t mask, T value, uint32_t source, const char* file, int line) {
    static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8);
    ShuffleArg arg{0, 0, source};
    __builtin_memcpy(&arg.value, &value, sizeof value);
    warp_rendezvous(mask, &SHUFFLE, &arg, file, line);
    __builtin_memcpy(&value, &arg.result, sizeof value);
    return value;
}

#ifdef CUEMU_CHECK
CUEMU_API uint32_t lane_index() __attribute__((const));
#else
static inline uint32_t lane_index() { return cur->lane; }
#endif

}  // namespace cuemu

static inline void __syncwarp(unsigned mask = 0xffffffffu, CUEMU_WHERE) {
    cuemu::warp_rendezvous(mask, &cuemu::SYNCWARP, nullptr, CUEMU_HERE);
}
template <class T>
static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUEMU_WHERE) {
    const unsigned lane = cuemu::lane_index();
    return cuemu::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), CUEMU_HERE);
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, CUEMU_WHERE) {
    const unsigned lane = cuemu::lane_index(), source = lane ^ bits;
    // Lanes of earlier segments can be read, those of later ones not.
    const bool later = (source & ~(width - 1)) > (lane & ~(width - 1));
    return cuemu::shuffle(mask, value, later ? lane : source, CUEMU_HERE);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUEMU_WHERE) {
    const unsigned lane = cuemu::lane_index();
    const bool outside = (lane & (width - 1)) + delta >= unsigned(width);
    return cuemu::shuffle(mask, value, outside ? lane : lane + delta, CUEMU_HERE);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUEMU_WHERE) {
    const unsigned lane = cuemu::lane_index();
    return cuemu::shuffle(mask, value, (lane & (width - 1)) < delta ? lane : lane - delta, CUEMU_HERE);
}
static inline unsigned __ballot_sync(unsigned mask, int p, CUEMU_WHERE) {
    return cuemu::warp_ballot(mask, p, CUEMU_HERE);
}
static inline int __any_sync(unsigned mask, int p, CUEMU_WHERE) {
    return cuemu::warp_ballot(mask, p, CUEMU_HERE) != 0;
}
static inline int __all_sync(unsigned mask, int p, CUEMU_WHERE) {
    return cuemu::warp_ballot(mask, !p, CUEMU_HERE) == 0;
}
