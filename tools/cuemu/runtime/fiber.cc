// Fibers and their scheduling. A fiber that waits switches straight to the next ready one, without a detour over the
// scheduler, which runs only to start a block and when nobody is ready.
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../driver/report.h"
#include "check.h"  // completes Worker
#include "runtime.h"

/// Pushes the callee-saved registers, stores the stack pointer to *save, and goes on where the stack `to` was left.
/// fault.cc relies on the order of the registers.
extern "C" void cuemu_switch(void** save, void* to);
asm(R"(
.text
.p2align 4
.hidden cuemu_switch
.globl cuemu_switch
.type cuemu_switch,@function
cuemu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp,(%rdi)
    movq %rsi,%rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size cuemu_switch,.-cuemu_switch
)");

namespace cuemu {

__thread Fiber* cur __attribute__((tls_model("initial-exec"))) = nullptr;
thread_local Worker* active_worker = nullptr;

uint64_t next_random(Block* block) {
    uint64_t x = block->random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return block->random = x;
}

void report(int code, const char* format, ...) {
    char text[1600], message[2000];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    const Fiber* f = cur;
    const Block* b = f ? f->block : active_worker ? &active_worker->block : nullptr;
    if (f) {
        snprintf(message, sizeof message, "kernel %s block (%u,%u,%u) thread (%u,%u,%u): %s", b->launch->kernel->name,
                 b->bid.x, b->bid.y, b->bid.z, f->tid.x, f->tid.y, f->tid.z, text);
    } else if (b) {
        snprintf(message, sizeof message, "kernel %s block (%u,%u,%u): %s", b->launch->kernel->name, b->bid.x,
                 b->bid.y, b->bid.z, text);
    } else {
        snprintf(message, sizeof message, "%s", text);
    }
    add_report(code, message);
}

[[noreturn]] static void fiber_main();

static inline uint32_t wrap(const Block* b, uint32_t i) {
    const uint32_t size = b->ready.size();
    return i >= size ? i - size : i;
}

void push_back(Block* b, uint32_t fiber) { b->ready.data()[wrap(b, b->ready_head + b->ready_count++)] = fiber; }

void push_front(Block* b, uint32_t fiber) {
    b->ready_head = b->ready_head ? b->ready_head - 1 : b->ready.size() - 1;
    b->ready.data()[b->ready_head] = fiber;
    b->ready_count++;
}

static inline uint32_t pop(Block* b) {
    uint32_t* ring = b->ready.data();
    if (b->launch->schedule == Schedule::Reverse) return ring[wrap(b, b->ready_head + --b->ready_count)];
    if (b->launch->schedule == Schedule::Random && b->ready_count > 1) {
        std::swap(ring[b->ready_head], ring[wrap(b, b->ready_head + next_random(b) % b->ready_count)]);
    }
    const uint32_t fiber = ring[b->ready_head];
    b->ready_head = wrap(b, b->ready_head + 1);
    b->ready_count--;
    return fiber;
}

/// Gives a fiber that has not begun a stack, the one that was given back last: it is in the cache.
static void take_stack(Fiber* f) {
    Worker* worker = f->block->worker;
    f->stack = worker->free_stacks[--worker->free_count];
    // Stack tops are staggered, lest the hot frames of all fibers fall into the same sets of the cache.
    const uintptr_t stagger = f->stack * 448u & 4095u & ~63u;
    const uintptr_t top = uintptr_t(worker->stacks) + (f->stack + 1) * STACK_BYTES - 64 - stagger;
    void** sp = reinterpret_cast<void**>(top & ~uintptr_t(63));
    *--sp = nullptr;
    *--sp = reinterpret_cast<void*>(&fiber_main);
    for (int k = 0; k < 6; k++) *--sp = nullptr;
    f->sp = sp;
}

void switch_away() {
    Fiber* me = cur;
    Block* b = me->block;
    if (b->ready_count == 0 || *b->launch->abort) {
        cuemu_switch(&me->sp, b->scheduler_sp);
        return;
    }
    Fiber* next = &b->fibers[pop(b)];
    if (next == me) return;
    if (!next->sp) take_stack(next);
    if (b->ready_count) {  // the one after next: its stack is cold
        const char* sp = static_cast<const char*>(b->fibers[b->ready.data()[b->ready_head]].sp);
        __builtin_prefetch(sp);
        __builtin_prefetch(sp + 64);
        __builtin_prefetch(sp + 128);
    }
    cur = next;
    cuemu_switch(&me->sp, next->sp);
}

void make_ready(Fiber* fiber) {
    fiber->state = State::Ready;
    push_back(fiber->block, fiber->index);
}

void wait_ready(const char* what, const char* file, int line) {
    Fiber* me = cur;
    me->state = State::Waiting;
    me->what = what;
    me->file = file;
    me->line = line;
    switch_away();
}

void die() {
    Fiber* me = cur;
    *me->block->launch->abort = 1;
    for (;;) cuemu_switch(&me->sp, me->block->scheduler_sp);
}

void trap(const char* file, int line) {
    report(LAUNCH_FAILED, "__trap at %s:%d", base_name(file), line);
    die();
}

/// Who waits where, equal places taken together; empty: nobody.
static std::string waiting_places(const Block* b) {
    struct Place {
        const Fiber* first;
        uint32_t count;
    };
    std::vector<Place> places;
    for (uint32_t i = 0; i < b->nthreads; i++) {
        const Fiber& f = b->fibers[i];
        if (f.state != State::Waiting) continue;
        auto same = [&](const Place& p) { return p.first->line == f.line && !strcmp(p.first->file, f.file); };
        auto found = std::find_if(places.begin(), places.end(), same);
        if (found == places.end()) places.push_back({&f, 1});
        else found->count++;
    }
    std::string text;
    for (const Place& p : places) {
        char one[300];
        snprintf(one, sizeof one, "%s %u (first: thread %u) wait in %s at %s:%d", text.empty() ? "" : ";", p.count,
                 p.first->index, p.first->what, base_name(p.first->file), p.first->line);
        text += one;
    }
    return text;
}

void spin_yield(const char* file, int line) {
    constexpr uint32_t PATIENCE = 20000000, PATIENCE_ALONE = 100000;
    Fiber* me = cur;
    Block* b = me->block;
    b->spins_alone = b->ready_count || b->async.pending() ? 0 : b->spins_alone + 1;
    // Nobody can write what it waits for if all others of the block wait, and no other block runs.
    const bool hopeless = b->spins_alone > PATIENCE_ALONE && __atomic_load_n(b->launch->running, __ATOMIC_RELAXED) == 1;
    if (hopeless || ++b->spins > PATIENCE) {
        const std::string others = waiting_places(b);
        report(LAUNCH_TIMEOUT, "deadlock: the loop at %s:%d waits for a write that never comes (or from a block that "
               "isn't resident)%s", base_name(file), line, others.empty() ? "" : ("; meanwhile" + others).c_str());
        die();
    }
    if (b->ready_count == 0) {
        if (b->async.pending()) b->async.complete_one(b);
        else sched_yield();  // another block, on another thread, may be the one that writes
    }
    if (b->launch->schedule == Schedule::Reverse) push_front(b, me->index);
    else push_back(b, me->index);
    switch_away();
}

/// Where a fiber begins. One that returns lends its stack to the next, if that has not begun: threads that never wait
/// run in a plain loop.
[[noreturn]] static void fiber_main() {
    for (;;) {
        cur->block->launch->kernel->invoke(cur->block->launch->params);
        Fiber* me = cur;
        Block* b = me->block;
        me->async.finish(me);
        me->state = State::Done;
        b->alive--;
        me->warp->alive &= ~(1u << me->lane);
        release_warp_after_exit(me);
        release_barrier_after_exit(me);
        Fiber* next = b->ready_count && !*b->launch->abort ? &b->fibers[pop(b)] : nullptr;
        cur = next;
        if (next && !next->sp) {
            next->stack = me->stack;
            next->sp = me->sp;  // only not null: it is stored when the fiber first waits
            continue;
        }
        b->worker->free_stacks[b->worker->free_count++] = me->stack;
        cuemu_switch(&me->sp, next ? next->sp : b->scheduler_sp);
    }
}

/// Of all fibers of a launch's blocks what stays the same from block to block.
static void place_fibers(Block* b) {
    const uint32_t* size = b->launch->block;
    uint3 tid{0, 0, 0};
    for (uint32_t i = 0; i < b->nthreads; i++) {
        Fiber& f = b->worker->fibers[i];
        f.tid = tid;
        f.index = i;
        f.lane = i & 31;
        f.warp = &b->worker->warps[i / 32];
        f.block = b;
        if (++tid.x < size[0]) continue;
        tid.x = 0;
        if (++tid.y < size[1]) continue;
        tid.y = 0;
        tid.z++;
    }
}

static void prepare_fiber(Block* b, uint32_t i) {
    Fiber& f = b->fibers[i];
    f.sp = nullptr;
    f.state = State::Ready;
    f.what = "start";
    f.file = "";
    f.line = 0;
    f.next_waiting = nullptr;
    f.async.reset();
    check_fiber_begin(&f);
    b->ready.data()[i] = i;
}

static void report_deadlock(Block* b) {
    cur = nullptr;
    report(LAUNCH_TIMEOUT, "deadlock, %u of %u threads have not returned:%s", b->alive, b->nthreads,
           waiting_places(b).c_str());
    *b->launch->abort = 1;
}

static void free_all_stacks(Worker* worker) {
    worker->free_count = MAX_THREADS;
    for (uint32_t i = 0; i < MAX_THREADS; i++) worker->free_stacks[i] = MAX_THREADS - 1 - i;
}

void run_block(Block* b) {
    Worker* worker = b->worker;
    const uint32_t n = b->nthreads;
    b->fibers = worker->fibers.data();
    b->warps = worker->warps.data();
    b->nwarps = (n + 31) / 32;
    b->alive = n;
    b->ready_head = 0;
    b->ready_count = n;
    b->spins = b->spins_alone = 0;
    memset(static_cast<void*>(b->barriers), 0, sizeof b->barriers);
    b->async.reset(b);
    check_block_begin(b);
    if (b->launch->poison) {
        memset(b->smem, 0xFF, b->smem_size);
        memset(worker->static_shared, 0xFF, worker->static_shared_size);
    }
    for (uint32_t i = 0; i < b->nwarps; i++) {
        const uint32_t lanes = std::min(32u, n - i * 32);
        b->warps[i].alive = lanes == 32 ? ~0u : (1u << lanes) - 1;
        b->warps[i].index = i;
        for (Rendezvous& r : b->warps[i].pending) r.mask = r.arrived = 0;
    }
    if (worker->free_count != MAX_THREADS) free_all_stacks(worker);  // an aborted launch kept some
    for (uint32_t i = 0; i < n; i++) prepare_fiber(b, i);
    while (!*b->launch->abort) {
        if (b->ready_count) {
            cur = &b->fibers[pop(b)];
            if (!cur->sp) take_stack(cur);
            cuemu_switch(&b->scheduler_sp, cur->sp);
        } else if (b->alive == 0) {
            break;
        } else if (b->async.pending()) {
            b->async.complete_one(b);
        } else {
            report_deadlock(b);
        }
        if (worker->fault.signal) report_fault(worker);
    }
    cur = nullptr;
}

void run_blocks(const Launch* launch, Worker* worker) {
    Block* b = &worker->block;
    b->launch = launch;
    b->worker = worker;
    b->nthreads = launch->block[0] * launch->block[1] * launch->block[2];
    b->smem_size = (launch->dynamic_shared + 15) & ~15u;
    b->smem = worker->smem + SMEM_BYTES - b->smem_size;
    locate_static_shared(launch->module, worker);
    place_fibers(b);
    active_worker = worker;
    __atomic_fetch_add(launch->running, 1, __ATOMIC_RELAXED);
    for (;;) {
        uint64_t i = __atomic_fetch_add(launch->next_block, 1, __ATOMIC_RELAXED);
        if (i >= launch->nblocks || *launch->abort) break;
        if (launch->order) i = launch->order[i];
        const uint32_t* grid = launch->grid;
        b->index = i;
        b->bid = {uint32_t(i % grid[0]), uint32_t(i / grid[0] % grid[1]), uint32_t(i / grid[0] / grid[1])};
        b->random = (launch->seed * 0x9E3779B97F4A7C15ull + i * 0xD1B54A32D192ED03ull) | 1;
        for (int k = 0; k < 4; k++) next_random(b);
        run_block(b);
    }
    __atomic_fetch_sub(launch->running, 1, __ATOMIC_RELAXED);
    active_worker = nullptr;
}

Worker* new_worker() {
    auto* w = new Worker();
    auto map = [](size_t bytes, int protection) {
        void* p = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) {
            perror("cuemu: mmap");
            abort();
        }
        return static_cast<char*>(p);
    };
    w->stacks = map(STACK_BYTES * MAX_THREADS, PROT_READ | PROT_WRITE);
    for (uint32_t i = 0; i < MAX_THREADS; i++) mprotect(w->stacks + i * STACK_BYTES, PAGE, PROT_NONE);
    char* smem = map(SMEM_BYTES + 2 * PAGE, PROT_NONE);
    w->smem = smem + PAGE;
    mprotect(w->smem, SMEM_BYTES, PROT_READ | PROT_WRITE);
    w->signal_stack = map(SMEM_BYTES, PROT_READ | PROT_WRITE);
    w->fibers.resize(MAX_THREADS);
    w->free_stacks.resize(MAX_THREADS);
    w->warps.resize(MAX_THREADS / 32);
    w->block.ready.resize(MAX_THREADS + 1);
    return w;
}

}  // namespace cuemu
