// The hook by which wrappers tell the checking build of memory accesses that they make for a thread: the compiler's
// instrumentation sees only plain loads and stores of kernel code.
#pragma once
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
/// clocks (`clocks()` entries), `acquire` the object's to `cur`'s.
CUEMU_API uint32_t clocks();
CUEMU_API void release(uint32_t* object);
CUEMU_API void acquire(const uint32_t* object);
#else
static inline void check_access(const void*, uint32_t, Access, const char*, const char*, int) {}
#endif

}  // namespace cuemu
