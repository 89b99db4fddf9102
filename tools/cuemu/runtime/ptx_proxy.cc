// The asynchronous proxy: wgmma reads shared memory by another way than ordinary loads and stores, and sees an ordinary
// write only if a fence.proxy.async stands between them, in the thread that wrote or in the one that issues the read.
#include "../include/cuemu/ptx_async.h"
#include "ptx_mbarrier.h"

namespace cuemu {

void proxy_fence(const char* file, int line) {
    need_cc90("fence.proxy.async", file, line);
    mbarrier_publish();
#ifdef CUEMU_CHECK
    cur->async.proxy_fence.assign(clocks(), 0);
    release(cur->async.proxy_fence.data());
#endif
}

#ifdef CUEMU_CHECK
void check_async_proxy_read(const void* p, uint32_t n, const char* what, const char* file, int line) {
    check_access(p, n, Access::Read, what, file, line);
    const auto covers = [](const Fiber& fiber, uint32_t writer, uint32_t clock) {
        const std::vector<uint32_t>& fence = fiber.async.proxy_fence;
        return !fence.empty() && fence[writer] >= clock;
    };
    for (uint32_t i = 0; i < n; i += 2) {
        uint32_t writer, clock;
        if (!last_write(static_cast<const char*>(p) + i, &writer, &clock) || writer >= cur->block->nthreads) continue;
        if (covers(cur->block->fibers[writer], writer, clock) || covers(*cur, writer, clock)) continue;
        report(LAUNCH_FAILED, "%s at %s:%d: thread %u wrote this shared memory, and no fence_proxy_async followed", what, file,
               line, writer);
        die();
    }
}
#endif

}  // namespace cuemu
