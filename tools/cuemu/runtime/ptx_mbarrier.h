// mbarriers, for those who signal them.
#pragma once
#include "ptx_common.h"

namespace cuemu {

/// The index in BlockAsync::mbarriers of the one at a shared address; none there ends the launch.
uint32_t find_mbarrier(uint32_t address, const char* what, const char* file, int line);
/// Adds to the bytes that have to arrive in the current phase (negative: they have).
void announce_bytes(Mbarrier& barrier, int64_t bytes, const char* file, int line);
/// Begins the next phase, and wakes who waits for it, if nothing is missing in the current one.
void complete_phase_if_due(Mbarrier& barrier);

}  // namespace cuemu
