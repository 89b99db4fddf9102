// State of the asynchronous instructions (cp.async, mbarrier, bulk copies, wgmma) of a fiber and of a block. The
// scheduler calls these members and knows nothing more of them.
#pragma once

namespace cuemu {

struct Block;
struct Fiber;

struct FiberAsync {
    /// Before a fiber starts.
    void reset() {}
    /// When it returns.
    void finish(Fiber*) {}
};

struct BlockAsync {
    /// Before a block starts.
    void reset(Block*) {}
    /// Whether operations are under way that can complete by themselves.
    bool pending() const { return false; }
    /// Completes one of them. Called when no fiber is ready.
    void complete_one(Block*) {}
};

}  // namespace cuemu
