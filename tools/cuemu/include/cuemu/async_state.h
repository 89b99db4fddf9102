// What is under way asynchronously (cp.async, mbarrier, TMA, wgmma) of a fiber and of a block. The scheduler calls
// reset, finish, pending and complete_one and knows nothing more of it; the bodies stand in runtime/ptx_*.cc.
#pragma once
#include <cstdint>
#include <vector>

namespace cuemu {

struct Block;
struct Fiber;

/// A cp.async: it reads `bytes` and writes them, and `zeros` zeros behind them.
struct CopyInFlight {
    char* to;
    const char* from;
    uint32_t bytes, zeros;
    uint32_t group;
    bool landed;  // the bytes have moved already, though the thread may not count on it
};

struct FiberAsync {
    std::vector<CopyInFlight> copies;
    uint32_t group;  // number of the open cp.async group
#ifdef CUEMU_CHECK
    /// What the thread had seen (clocks() entries) at its last fence.proxy.async; empty: no fence yet.
    std::vector<uint32_t> proxy_fence;
#endif
    /// Before a fiber starts.
    void reset();
    /// When it returns.
    void finish(Fiber*);
};

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
    uint32_t engine_clock;            // of the copy engine that signals this barrier
#endif
};

/// A box that TMA brings.
struct BoxInFlight {
    const void* map;
    int32_t start[3];
    uint32_t to;
    uint32_t barrier;  // index in BlockAsync::mbarriers
    Fiber* issuer;
#ifdef CUEMU_CHECK
    std::vector<uint32_t> issued;  // what the issuer had seen
#endif
    const char* file;
    int line;
};

struct BlockAsync {
    std::vector<Mbarrier> mbarriers;
    std::vector<BoxInFlight> boxes;
    std::vector<WarpAsync> warps;
    /// Before a block starts.
    void reset(Block*);
    /// Whether operations are under way that can complete by themselves.
    bool pending() const { return !boxes.empty(); }
    /// Completes one of them. Called when no fiber is ready.
    void complete_one(Block*);
};

}  // namespace cuemu
