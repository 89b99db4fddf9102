// Block-wide barriers.
#include "cuemu/barrier.h"

#include "runtime.h"

namespace cuemu {

/// Everybody expected is there: the waiting fibers become ready in the order of their arrival.
static void release_barrier(Block* b, Barrier& barrier, Fiber* self, bool whole) {
    check_barrier(b, barrier.waiting, whole);
    Fiber* first = nullptr;
    for (Fiber* f = barrier.waiting; f;) {
        Fiber* next = f->next_waiting;
        f->next_waiting = first;
        first = f;
        f = next;
    }
    barrier.waiting = nullptr;
    barrier.arrived = 0;
    for (Fiber* f = first; f; f = f->next_waiting) {
        // Kept per fiber: the barrier may be in use again before the fiber runs.
        f->result = barrier.result;
        if (f != self) make_ready(f);
    }
}

/// The barrier, with its records begun if nobody has come to it yet.
static Barrier& come_to_barrier(Block* b, int id, uint32_t expected, const char* file, int line) {
    if (id < 0 || id >= BARRIERS || expected % 32 != 0 || expected > b->nthreads) {
        report(LAUNCH_FAILED, "barrier %d for %u threads at %s:%d: there are barriers 0 to 15, for whole warps of the "
               "block's %u threads", id, expected, base_name(file), line, b->nthreads);
        die();
    }
    Barrier& barrier = b->barriers[id];
    if (barrier.arrived == 0) {
        barrier.result = {0, 1, 0};
        barrier.file = file;
        barrier.line = line;
    }
    return barrier;
}

BarrierResult barrier_sync(int id, uint32_t expected, int predicate, const char* file, int line) {
    Fiber* me = cur;
    Block* b = me->block;
    Barrier& barrier = come_to_barrier(b, id, expected, file, line);
    if (!expected && barrier.line != line) {
        report(LAUNCH_FAILED, "divergent __syncthreads: this thread is at %s:%d, others wait at %s:%d", base_name(file),
               line, base_name(barrier.file), barrier.line);
        die();
    }
    barrier.result.any |= predicate != 0;
    barrier.result.all &= predicate != 0;
    barrier.result.count += predicate != 0;
    me->next_waiting = barrier.waiting;
    barrier.waiting = me;
    barrier.arrived++;
    if (barrier.arrived < (expected ? expected : b->alive)) {
        wait_ready(expected ? "a named barrier" : "__syncthreads", file, line);
        return me->result;
    }
    release_barrier(b, barrier, me, !expected);
    if (b->launch->schedule != Schedule::Fifo) {
        push_back(b, me->index);
        switch_away();
    }
    return me->result;
}

void barrier_arrive(int id, uint32_t expected, const char* file, int line) {
    Block* b = cur->block;
    Barrier& barrier = come_to_barrier(b, id, expected, file, line);
    if (++barrier.arrived >= expected) release_barrier(b, barrier, nullptr, false);
}

void release_barrier_after_exit(Fiber* fiber) {
    Block* b = fiber->block;
    Barrier& barrier = b->barriers[0];
    if (barrier.arrived && barrier.arrived >= b->alive) release_barrier(b, barrier, nullptr, true);
}

}  // namespace cuemu
