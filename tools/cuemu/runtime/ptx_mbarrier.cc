// Named barriers and mbarriers. An mbarrier is known by its shared address; the 8 bytes there are not used.
#include "../include/cuemu/barrier.h"
#include "../include/cuemu/ptx_async.h"
#include "ptx_state.h"

namespace cuemu {
namespace {

/// The largest arrival count and the largest number of outstanding bytes of an mbarrier.
constexpr int64_t LIMIT = (1 << 20) - 1;

bool waits_for(const Mbarrier& barrier, uint32_t parity) { return (barrier.phase & 1) == parity; }

}  // namespace

uint32_t find_mbarrier(uint32_t address, const char* what, const char* file, int line) {
    const std::vector<Mbarrier>& all = cur->block->async.state->mbarriers;
    for (uint32_t i = 0; i < all.size(); i++)
        if (all[i].address == address) return i;
    report(LAUNCH_FAILED, "%s at %s:%d: no mbarrier has been initialised at shared address 0x%x", what, base_name(file),
           line, address);
    die();
}

void announce_bytes(Mbarrier& barrier, int64_t bytes, const char* file, int line) {
    barrier.bytes += bytes;
    if (barrier.bytes >= -LIMIT && barrier.bytes <= LIMIT) return;
    report(LAUNCH_FAILED, "mbarrier 0x%x at %s:%d: %lld bytes outstanding, more than an mbarrier can count",
           barrier.address, base_name(file), line, (long long)barrier.bytes);
    die();
}

void complete_phase_if_due(Mbarrier& barrier) {
    if (barrier.pending || barrier.bytes) return;
    barrier.phase++;
    barrier.pending = barrier.count;
#ifdef CUEMU_CHECK
    barrier.completed = barrier.arrived;
#endif
    for (Fiber* fiber : barrier.waiters) make_ready(fiber);
    barrier.waiters.clear();
}

void named_barrier(int id, int threads, bool wait, const char* file, int line) {
    if (id == 0 || threads <= 0) {
        report(LAUNCH_FAILED, "named barrier %d for %d threads at %s:%d: the barriers with names are 1 to 15", id,
               threads, base_name(file), line);
        die();
    }
#ifdef CUEMU_CHECK
    // Who arrives without waiting gives what it has seen to those who wait; it comes to hold for them a little early, for
    // arrivals of the barrier's next use too.
    std::vector<uint32_t>& arrivals = cur->block->async.state->arrivals[id & 15];
    arrivals.resize(clocks());
    if (!wait) release(arrivals.data());
#endif
    if (!wait) {
        barrier_arrive(id, threads, file, line);
        return;
    }
    barrier_sync(id, threads, 0, file, line);
#ifdef CUEMU_CHECK
    acquire(arrivals.data());
#endif
}

void mbarrier_begin(uint32_t address, uint32_t count, const char* file, int line) {
    need_cc90("mbarrier.init", file, line);
    smem_ptr(address, 8, "mbarrier.init", file, line);
    if (address % 8) {
        report(MISALIGNED_ADDRESS, "mbarrier.init at %s:%d: address 0x%x is not 8-byte aligned", base_name(file), line,
               address);
        die();
    }
    if (count < 1 || count > LIMIT) {
        report(LAUNCH_FAILED, "mbarrier.init at %s:%d: count %u", base_name(file), line, count);
        die();
    }
    std::vector<Mbarrier>& all = cur->block->async.state->mbarriers;
    for (const Mbarrier& barrier : all) {
        if (barrier.address != address) continue;
        report(LAUNCH_FAILED, "mbarrier.init at %s:%d: there is an mbarrier at 0x%x already", base_name(file), line,
               address);
        die();
    }
    if (all.size() == ENGINES) {
        report(LAUNCH_FAILED, "mbarrier.init at %s:%d: more than %d mbarriers in a block are not emulated",
               base_name(file), line, ENGINES);
        die();
    }
    Mbarrier made{};
    made.address = address;
    made.count = made.pending = count;
    made.initialiser = cur;
#ifdef CUEMU_CHECK
    made.arrived.assign(clocks(), 0);
    made.completed.assign(clocks(), 0);
#endif
    all.push_back(std::move(made));
}

void publish_mbarriers() {
    for (Mbarrier& barrier : cur->block->async.state->mbarriers) barrier.fenced |= barrier.initialiser == cur;
}

void mbarrier_publish(const char* file, int line) {
    need_cc90("fence.mbarrier_init", file, line);
    publish_mbarriers();
}

void mbarrier_arrival(uint32_t address, uint32_t bytes, const char* file, int line) {
    need_cc90("mbarrier.arrive", file, line);
    Mbarrier& barrier = cur->block->async.state->mbarriers[find_mbarrier(address, "mbarrier.arrive", file, line)];
    if (barrier.pending == 0) {
        report(LAUNCH_FAILED,
               "mbarrier.arrive at %s:%d: more arrivals in a phase than the %u that mbarrier 0x%x counts",
               base_name(file), line, barrier.count, address);
        die();
    }
#ifdef CUEMU_CHECK
    release(barrier.arrived.data());
#endif
    announce_bytes(barrier, bytes, file, line);
    barrier.pending--;
    complete_phase_if_due(barrier);
}

void mbarrier_await(uint32_t address, uint32_t parity, const char* file, int line) {
    need_cc90("mbarrier.try_wait", file, line);
    const uint32_t index = find_mbarrier(address, "mbarrier.try_wait", file, line);
    // The vector may grow while this fiber waits: no reference may be kept.
    std::vector<Mbarrier>& all = cur->block->async.state->mbarriers;
    while (waits_for(all[index], parity)) {
        all[index].waiters.push_back(cur);
        cur->state = State::Waiting;
        wait_ready("mbarrier.try_wait", file, line);
    }
#ifdef CUEMU_CHECK
    acquire(all[index].completed.data());
#endif
}

}  // namespace cuemu
