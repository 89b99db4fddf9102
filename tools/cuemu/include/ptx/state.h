// What is under way asynchronously: held by the runtime's threads, warps and blocks, used by the PTX emulation.
#pragma once
#include <cstdint>
#include <vector>

namespace cuemu {

struct Fiber;

// A cp.async: reads `bytes`, then writes `zeros` zeros behind them.
struct CopyInFlight {
    char* to;
    const char* from;
    uint32_t bytes, zeros, group;
    bool landed;  // the bytes have moved, though the thread may not count on it yet
    const char* file;
    int line;
};

struct ThreadAsync {
    std::vector<CopyInFlight> copies;
    uint32_t group;                        // number of the open cp.async group
    std::vector<uint32_t> proxy_fence;     // checking builds: this thread's clocks at its last fence.proxy.async
    void reset() {
        copies.clear();
        group = 0;
        proxy_fence.clear();
    }
};

// A warp's share of a wgmma: 16 rows of D. The accumulators hold poison meanwhile; their values are here, lane after lane.
struct ProductInFlight {
    void (*compute)(ProductInFlight&);
    uint64_t a, b;                 // descriptors
    float* accumulators[32];       // per lane, `per_lane` floats
    std::vector<float> values;
    uint32_t per_lane, group;
    bool accumulate, computed;
    const char* file;
    int line;
};

struct WarpAsync {
    std::vector<ProductInFlight> products;
    uint32_t group;  // number of the open wgmma group
    bool fenced;     // a wgmma.fence has come since the warp began
    void reset() {
        products.clear();
        group = 0;
        fenced = false;
    }
};

struct Mbarrier {
    uint32_t address, count, pending, phase;
    int64_t expected_bytes;  // may be negative: bytes may come before they are announced
    std::vector<Fiber*> waiters;
    std::vector<uint32_t> clock;  // checking builds: joined clocks of those who arrived
};

// A TMA box on its way.
struct BoxInFlight {
    const void* map;
    int32_t start[3];
    uint32_t to, barrier;
    Fiber* issuer;
    std::vector<uint32_t> clock;  // checking builds: the issuer's clocks
    const char* file;
    int line;
};

struct BlockAsync {
    std::vector<Mbarrier> mbarriers;
    std::vector<BoxInFlight> boxes;
    void reset() {
        mbarriers.clear();
        boxes.clear();
    }
};

}  // namespace cuemu
