// What is under way asynchronously (cp.async, mbarrier, TMA, wgmma) of a fiber and of a block. The scheduler calls
// reset, finish, pending and complete_one and knows nothing more of it; the bodies stand in runtime/ptx_*.cc.
#pragma once
#include <cstdint>
#include <vector>

namespace cuemu {

struct Block;
struct Fiber;
struct AsyncState;

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
    /// What the thread had seen at its last fence.proxy.async; empty: no fence yet.
    std::vector<uint32_t> proxy_fence;
    uint32_t proxy_fence_epoch;
#endif
    /// Before a fiber starts.
    void reset();
    /// When it returns.
    void finish(Fiber*);
};

struct BlockAsync {
    AsyncState* state = nullptr;  // made by the first block of a worker, and kept
    /// Before a block starts.
    void reset(Block*);
    /// Whether operations are under way that can complete by themselves.
    bool pending() const;
    /// Completes one of them. Called when no fiber is ready.
    void complete_one(Block*);
};

}  // namespace cuemu
