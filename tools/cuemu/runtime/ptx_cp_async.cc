// cp.async: a copy lands at its issue, at the wait that covers it, or at one of the two at random. Until it lands, its
// destination holds poison. The checking build treats the destination as in flight until the wait in every mode.
#include "../include/cuemu/ptx_async.h"
#include "ptx_common.h"

namespace cuemu {
namespace {

void land(CopyInFlight& copy) {
    memcpy(copy.to, copy.from, copy.bytes);
    memset(copy.to + copy.bytes, 0, copy.zeros);
    copy.landed = true;
}

}  // namespace

void FiberAsync::reset() {
    copies.clear();
    group = 0;
#ifdef CUEMU_CHECK
    proxy_fence.clear();
#endif
}

void cp_async(uint32_t to, const void* from, int bytes, int size, const char* file, int line) {
    if (to % size || uintptr_t(from) % size) {
        report(MISALIGNED_ADDRESS, "cp.async at %s:%d: shared 0x%x or global %p is not %d-byte aligned",
               base_name(file), line, to, from, size);
        die();
    }
    if (bytes < 0 || bytes > size) {
        report(LAUNCH_FAILED, "cp.async at %s:%d: %d bytes out of a copy of %d", base_name(file), line, bytes, size);
        die();
    }
    char* const target = smem_ptr(to, size, "cp.async", file, line);
    CopyInFlight copy{target, static_cast<const char*>(from), uint32_t(bytes), uint32_t(size - bytes), cur->async.group,
                      false};
    // A source outside all buffers faults here, at the instruction, and not at the wait.
    if (bytes) {
        (void)*static_cast<const volatile char*>(copy.from);
        (void)*static_cast<const volatile char*>(copy.from + bytes - 1);
        check_access(copy.from, bytes, Access::Read, "cp.async source", file, line);
    }
    check_access(target, size, Access::Write, "cp.async (issue)", file, line);
    check_access(target, size, Access::InFlight, "cp.async (not awaited)", file, line);
    if (happens_at_once()) {
        land(copy);
    } else {
        memset(target, 0xff, size);
    }
    cur->async.copies.push_back(copy);
}

void cp_async_close_group() { cur->async.group++; }

void cp_async_await(uint32_t latest, const char* file, int line) {
    FiberAsync& async = cur->async;
    size_t kept = 0;
    for (CopyInFlight& copy : async.copies) {
        if (copy.group + latest >= async.group) {
            async.copies[kept++] = copy;
            continue;
        }
        if (!copy.landed) land(copy);
        check_access(copy.to, copy.bytes + copy.zeros, Access::Write, "cp.async (completion)", file, line);
    }
    async.copies.resize(kept);
}

}  // namespace cuemu
