// The asynchronous proxy: wgmma reads shared memory by another way than ordinary loads and stores, and sees an ordinary
// write only if a fence.proxy.async stands between them, in the thread that wrote or in the one that issues the read.
#include "../include/cuemu/ptx_async.h"
#include "ptx_state.h"
#ifdef CUEMU_CHECK
#include "check.h"
#endif

namespace cuemu {

void proxy_fence(const char* file, int line) {
    need_cc90("fence.proxy.async", file, line);
    publish_mbarriers();
#ifdef CUEMU_CHECK
    FiberAsync& async = cur->async;
    async.proxy_fence.assign(clocks(), 0);
    async.proxy_fence_epoch = cur->epoch;
    release(async.proxy_fence.data());
#endif
}

#ifdef CUEMU_CHECK
/// Whether the last fence of `fiber` stands behind a write.
static bool covers(const Fiber& fiber, const Stamp& write) {
    const FiberAsync& async = fiber.async;
    if (async.proxy_fence.empty()) return false;
    const bool earlier_epoch = write.thread != fiber.index && write.epoch < async.proxy_fence_epoch;
    return earlier_epoch || write.clock <= async.proxy_fence[write.thread];
}

void check_async_proxy_read(const void* p, uint32_t n, const char* what, const char* file, int line) {
    check_access(p, n, Access::Read, what, file, line);
    const Block* block = cur->block;
    const Shadow* shadow = &block->worker->dynamic_shadow[static_cast<const char*>(p) - block->smem];
    for (uint32_t i = 0; i < n; i++) {
        const Stamp& write = shadow[i].write;
        if (write.epoch < block->first_epoch || write.thread >= block->nthreads) continue;
        if (covers(block->fibers[write.thread], write) || covers(*cur, write)) continue;
        report(LAUNCH_FAILED, "%s at %s:%d: thread %u wrote this shared memory, and no fence_proxy_async followed",
               what, base_name(file), line, write.thread);
        die();
    }
}
#endif

}  // namespace cuemu
