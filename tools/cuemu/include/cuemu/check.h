// The hook by which wrappers tell the checking build of memory accesses that they make for a thread: the compiler's
// instrumentation sees only plain loads and stores of kernel code.
#pragma once
#include "fiber.h"
#include "language.h"

namespace cuemu {

enum class Access : int {
    Read,
    Write,
    Atomic,
    /// A write that has been issued but not awaited: reading it is an error until the same thread's `Write`.
    InFlight,
};

#ifdef CUEMU_CHECK
/// Checks an access of `n` bytes at `p` by `cur`: bounds, initialisation, races. `what` names it in reports.
CUEMU_API void check_access(const void* p, uint32_t n, Access kind, const char* what, const char* file, int line);
/// For objects by which threads order their accesses (mbarriers): `release` adds what `cur` has seen to the object's
/// clocks (`clocks()` entries, zero at first), `acquire` the object's to `cur`'s.
CUEMU_API uint32_t clocks();
CUEMU_API void release(uint32_t* object);
CUEMU_API void acquire(const uint32_t* object);

/// What `cur` has seen when it issues an asynchronous operation, for the engine that does it later.
struct Issue {
    uint32_t thread, epoch;
    std::vector<uint32_t> seen;
};
CUEMU_API Issue issue();
/// Makes `cur` copy engine number `engine` (below ENGINES) of the block, doing an operation of that issue, as long as it
/// lives. An engine's accesses are ordered before a thread's only through an object that it releases.
class EngineScope {
   public:
    CUEMU_API EngineScope(Block* block, uint32_t engine, Issue& issue);
    CUEMU_API ~EngineScope();
    EngineScope(const EngineScope&) = delete;
    EngineScope& operator=(const EngineScope&) = delete;

   private:
    Fiber fiber;
    Fiber* before;
};
#else
static inline void check_access(const void*, uint32_t, Access, const char*, const char*, int) {}
#endif

}  // namespace cuemu
