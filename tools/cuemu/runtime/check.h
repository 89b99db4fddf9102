// The checks' shadow of shared memory. Only in the checking build.
#pragma once
#include "runtime.h"

namespace cuemu {

/// Who accessed a byte last, when and from where.
struct Stamp {
    uint32_t clock, epoch;  // epoch older than the block's first: never, in this block
    uint32_t place;
    uint16_t thread;
    Access kind;
};

/// Per byte: the last write, and three readers: the last one, the last other one of its warp, the last of another warp.
/// So a write after the reads of whole warps meets an unordered reader in whatever order they came.
struct Shadow {
    Stamp write, reads[3];
};

/// Where an access stands in the source: the offset of its instruction in the twin, or the number of a wrapper's site.
constexpr uint32_t SITE = 0x80000000u;

/// Checks an access of `n` bytes at `p` by the current fiber, at a place.
void check_memory(uintptr_t p, uint32_t n, Access kind, uint32_t place);
/// The place of an address in the running twin.
uint32_t place_of(const void* return_address);
/// "a read at file:line", "cp.async at file:line".
std::string describe_place(uint32_t place, const char* access);
/// Whether this pair of places has not been reported in this launch; false also when there have been many reports.
bool first_report(uint32_t place, uint32_t other);

}  // namespace cuemu
