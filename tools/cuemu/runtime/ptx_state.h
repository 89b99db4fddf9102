// What a block has under way: wgmma products, mbarriers, boxes that TMA brings.
#pragma once
#include "ptx_common.h"

namespace cuemu {

/// A warp's share of a wgmma, 16 rows of D. Until it is awaited the lanes' accumulators hold poison and their values
/// stand here.
struct ProductInFlight {
    uint64_t a, b;  // descriptors
    int n;          // columns of D
    bool b_n_innermost, accumulate;
    bool computed;
    uint32_t group;
    float* accumulators[32];    // n / 2 per lane
    std::vector<float> values;  // lane after lane
    const char* file;
    int line;
};

struct WarpAsync {
    std::vector<ProductInFlight> products;
    uint32_t group = 0;   // number of the open wgmma group
    bool fenced = false;  // there has been a wgmma.fence
    /// What the products that completed since the last fence left, to see whether the program changed it.
    struct Result {
        const float* accumulators;
        std::vector<float> values;
    };
    std::vector<Result> since_fence;
};

struct Mbarrier {
    uint32_t address;
    uint32_t count;    // arrivals that complete a phase
    uint32_t pending;  // of those, still missing in the current phase
    int64_t bytes;     // announced and not arrived; negative: arrived before they were announced
    uint32_t phase;
    const Fiber* initialiser;
    bool fenced;  // its initialisation has been made visible to asynchronous copies
    std::vector<Fiber*> waiters;
#ifdef CUEMU_CHECK
    std::vector<uint32_t> arrived;    // joined clocks of all arrivals so far
    std::vector<uint32_t> completed;  // `arrived` when the last phase completed
#endif
};

/// A box that TMA brings.
struct BoxInFlight {
    const void* map;
    int32_t start[3];
    uint32_t to;
    uint32_t barrier;  // index in AsyncState::mbarriers; also the number of the copy engine
    Fiber* issuer;
#ifdef CUEMU_CHECK
    Issue issued;
#endif
    const char* file;
    int line;
};

struct AsyncState {
    std::vector<Mbarrier> mbarriers;
    std::vector<BoxInFlight> boxes;
    std::vector<WarpAsync> warps;
#ifdef CUEMU_CHECK
    std::vector<uint32_t> arrivals[BARRIERS];  // clocks of named_barrier_arrive
#endif
};

/// The index in AsyncState::mbarriers of the one at a shared address; none there ends the launch.
uint32_t find_mbarrier(uint32_t address, const char* what, const char* file, int line);
/// Adds to the bytes that have to arrive in the current phase (negative: they have).
void announce_bytes(Mbarrier& barrier, int64_t bytes, const char* file, int line);
/// Begins the next phase, and wakes who waits for it, if nothing is missing in the current one.
void complete_phase_if_due(Mbarrier& barrier);
/// Makes the initialisations of mbarriers by the current thread visible to asynchronous copies.
void publish_mbarriers();

}  // namespace cuemu
