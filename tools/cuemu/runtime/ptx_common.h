// What the PTX emulation's files share.
#pragma once
#include <cstdint>
#include <cstring>

#include "../include/cuemu/check.h"
#include "../include/cuemu/fiber.h"
#include "../include/cuemu/shared.h"
#include "../include/cuemu/warp.h"
#include "runtime.h"

namespace cuemu {

inline float bf16_value(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}
/// The two elements of a register: the first one stands in its low half.
inline float low(uint32_t pair) { return bf16_value(uint16_t(pair)); }
inline float high(uint32_t pair) { return bf16_value(uint16_t(pair >> 16)); }

/// Makes another fiber the current one, to check its accesses in its name, until the end of the scope.
class ActAs {
public:
    explicit ActAs(Fiber* other) : self(cur) { cur = other; }
    ~ActAs() { cur = self; }
    ActAs(const ActAs&) = delete;

private:
    Fiber* self;
};

/// Instructions of compute capability 9.0 end the launch on an older device.
inline void need_cc90(const char* what, const char* file, int line) {
    if (cur->block->launch->cc >= 90) return;
    const uint32_t cc = cur->block->launch->cc;
    report(LAUNCH_FAILED, "%s at %s:%d needs compute capability 9.0, this device has %u.%u", what, base_name(file),
           line, cc / 10, cc % 10);
    die();
}

constexpr uint32_t ALL_LANES = 0xffffffff;

/// Instructions marked .aligned need all 32 lanes of the warp: none may have returned, or be missing from a last warp
/// that isn't full.
inline void need_whole_warp(const Rendezvous* met) {
    if (met->arrived == ALL_LANES) return;
    report(LAUNCH_FAILED, "%s at %s:%d by the lanes %08x alone: all 32 lanes of the warp have to take part",
           met->kind->name, base_name(met->file), met->line, met->arrived);
    die();
}

/// Whether an asynchronous operation takes effect at its issue.
inline bool happens_at_once() {
    Block* block = cur->block;
    switch (block->launch->async) {
        case AsyncMode::Eager: return true;
        case AsyncMode::Late: return false;
        default: return next_random(block) >> 20 & 1;
    }
}

/// Checks a read by wgmma, which sees ordinary writes only past a fence.proxy.async.
#ifdef CUEMU_CHECK
void check_async_proxy_read(const void* p, uint32_t n, const char* what, const char* file, int line);
#else
inline void check_async_proxy_read(const void*, uint32_t, const char*, const char*, int) {}
#endif

}  // namespace cuemu
