// The checking build's view of memory accesses. Shared memory: every byte has the stamps of its last accesses, and an
// access must be ordered after those it conflicts with. Global memory: bounds, initialisation, conflicts between blocks.
#ifdef CUEMU_CHECK
#include "check.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <set>

#include "../driver/memory.h"

namespace cuemu {

// Places and reports. Workers share them.
namespace {
struct SiteInfo {
    const char *what, *file;
    int line;
};
std::mutex places_mutex;
std::vector<SiteInfo> sites;
std::set<std::pair<uint32_t, uint32_t>> reported;
constexpr size_t MANY_REPORTS = 10;
}  // namespace

static uint64_t twin_base(const ModuleTable* module) {
    static thread_local const ModuleTable* of = nullptr;
    static thread_local uint64_t base = 0;
    if (of != module) {
        Dl_info info{};
        dladdr(module, &info);
        base = reinterpret_cast<uint64_t>(info.dli_fbase);
        of = module;
    }
    return base;
}

uint32_t place_of(const void* return_address) {
    const Worker* worker = active_worker;
    // Minus one: into the call, not after it.
    return worker ? reinterpret_cast<uint64_t>(return_address) - 1 - twin_base(worker->block.launch->module) : 0;
}

static uint32_t site_of(const char* what, const char* file, int line) {
    // The same few wrappers run over and over: the last one is remembered without a lock.
    static thread_local SiteInfo last{};
    static thread_local uint32_t last_place = 0;
    if (last.what == what && last.file == file && last.line == line) return last_place;
    std::lock_guard<std::mutex> lock(places_mutex);
    size_t i = 0;
    while (i < sites.size() && !(sites[i].what == what && sites[i].file == file && sites[i].line == line)) i++;
    if (i == sites.size()) sites.push_back({what, file, line});
    last = sites[i];
    return last_place = SITE | uint32_t(i);
}

std::string describe_place(uint32_t place, const char* access) {
    if (!(place & SITE)) return std::string(access) + " at " + source_line(twin_base(cur->block->launch->module) + place);
    std::lock_guard<std::mutex> lock(places_mutex);
    const SiteInfo& site = sites[place & ~SITE];
    return std::string(site.what) + " at " + base_name(site.file) + ":" + std::to_string(site.line);
}

bool first_report(uint32_t place, uint32_t other) {
    std::lock_guard<std::mutex> lock(places_mutex);
    return reported.size() < MANY_REPORTS && reported.insert({place, other}).second;
}

void check_launch_begin() {
    std::lock_guard<std::mutex> lock(places_mutex);
    reported.clear();
}

// Orders between accesses.

/// Whether what `stamp` says happened before what `f` does now.
static bool ordered(const Fiber* f, const Stamp& stamp) {
    if (stamp.thread == f->index) return true;
    if (stamp.thread < f->block->nthreads && stamp.epoch < f->epoch) return true;
    return f->block->clocks_in_use && stamp.clock <= f->seen[stamp.thread];
}

static const char* verb(Access kind) {
    return kind == Access::Read ? "read" : kind == Access::Atomic ? "atomic" : "write";
}

static void report_race(const char* kind, Access access, uint32_t place, const Stamp& other, long offset, const char* space) {
    if (!first_report(place, other.place)) return;
    const std::string mine = describe_place(place, verb(access)), theirs = describe_place(other.place, verb(other.kind));
    const Block* b = cur->block;
    char who[60];
    if (other.thread < b->nthreads) snprintf(who, sizeof who, "thread %u (warp %u)", other.thread, other.thread / 32);
    else snprintf(who, sizeof who, "copy engine %u", other.thread - b->nthreads);
    report(LAUNCH_FAILED, "%s race on byte %ld of %s shared memory: %s isn't ordered after %s by %s", kind, offset, space,
           mine.c_str(), theirs.c_str(), who);
}

static void note_read(Shadow* s, const Stamp& now) {
    Stamp* r = s->reads;
    if (r[0].thread == now.thread) {
        r[0] = now;
    } else if (r[0].thread / 32 == now.thread / 32) {
        r[1] = r[0];
        r[0] = now;
    } else {
        r[2] = r[0];
        r[0] = now;
    }
}

static void check_shared(Shadow* s, uint32_t n, Access kind, uint32_t place, long offset, const char* space) {
    Fiber* f = cur;
    const uint32_t first = f->block->first_epoch;
    const Stamp now{f->clock, f->epoch, place, uint16_t(f->index), kind};
    for (uint32_t i = 0; i < n; i++, s++, offset++) {
        const bool written = s->write.epoch >= first;
        if (kind == Access::Read) {
            if (!written) {
                if (first_report(place, 0)) {
                    report(LAUNCH_FAILED, "uninitialised byte %ld of %s shared memory: %s", offset, space,
                           describe_place(place, "read").c_str());
                }
            } else if (s->write.kind == Access::InFlight) {
                report_race("read-before-arrival", kind, place, s->write, offset, space);
            } else if (!ordered(f, s->write)) {
                report_race("read-after-write", kind, place, s->write, offset, space);
            }
            note_read(s, now);
            continue;
        }
        const bool atomics = kind == Access::Atomic && s->write.kind == Access::Atomic;
        if (written && !atomics && !ordered(f, s->write)) {
            report_race("write-after-write", kind, place, s->write, offset, space);
        } else {
            for (const Stamp& read : s->reads) {
                if (read.epoch < first || ordered(f, read)) continue;
                report_race("write-after-read", kind, place, read, offset, space);
                break;
            }
        }
        s->write = now;
        for (Stamp& read : s->reads) read.epoch = 0;
    }
}

static void check_global(uintptr_t p, uint32_t n, Access kind, uint32_t place) {
    const size_t offset = p - arena.low;
    uint8_t* bytes = arena.bytes + offset;
    Touch* touches = arena.touches + offset;
    const Block* b = cur->block;
    for (uint32_t i = 0; i < n; i++) {
        if (bytes[i] != ByteState::OUTSIDE) continue;
        report(ILLEGAL_ADDRESS, "global %s of %u bytes is out of bounds: %s; %s", verb(kind), n,
               describe_place(place, verb(kind)).c_str(), describe_address(p + i).c_str());
        die();
    }
    // Within a launch only atomics order blocks: two blocks may not touch a byte if one of them writes it.
    const uint32_t me = touch_stamp(b->launch->id, b->index);
    for (uint32_t i = 0; i < n; i++) {
        if (kind != Access::Read) {
            bytes[i] = ByteState::WRITTEN;
        } else if (bytes[i] == ByteState::UNWRITTEN && first_report(place, 1)) {
            report(LAUNCH_FAILED, "uninitialised global memory: %s; %s", describe_place(place, "read").c_str(),
                   describe_address(p + i).c_str());
        }
        Touch& t = touches[i];
        if (kind == Access::Atomic) {
            t = {};
            continue;
        }
        const uint32_t other = same_launch(t.writer, me) && t.writer != me                          ? t.writer
                               : kind != Access::Read && same_launch(t.reader, me) && t.reader != me ? t.reader
                                                                                                     : 0;
        if (other && first_report(place, 2)) {
            const uint32_t block = touch_block(other);
            const std::string who = block == TOUCH_MANY - 1 ? "several blocks" : "block " + std::to_string(block);
            report(LAUNCH_FAILED, "race between blocks: %s meets a %s by %s of the same launch; %s",
                   describe_place(place, verb(kind)).c_str(), other == t.writer ? "write" : "read", who.c_str(),
                   describe_address(p + i).c_str());
        }
        if (kind == Access::Read) {
            t.reader = same_launch(t.reader, me) && t.reader != me ? touch_many(me) : me;
        } else {
            t.writer = me;
        }
    }
}

void check_memory(uintptr_t p, uint32_t n, Access kind, uint32_t place) {
    const Fiber* f = cur;
    if (!f || n == 0) return;
    const Block* b = f->block;
    Worker* worker = b->worker;
    const uint32_t dynamic = b->launch->dynamic_shared;
    if (uintptr_t o = p - reinterpret_cast<uintptr_t>(b->smem); o < dynamic && o + n <= dynamic) {
        check_shared(&worker->dynamic_shadow[o], n, kind, place, o, "dynamic");
    } else if (o = p - reinterpret_cast<uintptr_t>(worker->smem); o < SMEM_BYTES + PAGE) {
        report(ILLEGAL_ADDRESS, "dynamic shared %s of %u bytes at offset %ld of %u is out of bounds: %s", verb(kind), n,
               long(p) - long(b->smem), dynamic, describe_place(place, verb(kind)).c_str());
        die();
    } else if (o = p - reinterpret_cast<uintptr_t>(worker->static_shared); o < worker->static_shared_size) {
        check_shared(&worker->static_shadow[o], n, kind, place, o, "static");
    } else if (p >= arena.low && p < arena.high) {
        check_global(p, n, kind, place);
    }
}

void check_access(const void* p, uint32_t n, Access kind, const char* what, const char* file, int line) {
    check_memory(reinterpret_cast<uintptr_t>(p), n, kind, site_of(what, file, line));
}

// Clocks. A whole-block barrier needs none: it only moves its threads to the next epoch. Finer orders (one warp, a named
// barrier, an mbarrier) take vector clocks, which a block sets up when it first needs them.

void check_block_begin(Block* b) {
    Worker* worker = b->worker;
    b->first_epoch = ++worker->epoch;
    b->clocks_in_use = false;
    if (worker->dynamic_shadow.size() < b->smem_size) worker->dynamic_shadow.resize(b->smem_size);
    if (worker->static_shadow.size() < worker->static_shared_size) worker->static_shadow.resize(worker->static_shared_size);
    worker->clocks.resize(std::max(worker->clocks.size(), size_t(b->nthreads) * (b->nthreads + ENGINES)));
    worker->joined.resize(MAX_THREADS + ENGINES);
}

void check_fiber_begin(Fiber* f) {
    f->clock = 1;
    f->epoch = f->block->first_epoch;
    f->seen = f->block->worker->clocks.data() + size_t(f->index) * (f->block->nthreads + ENGINES);
}

uint32_t clocks() { return cur->block->nthreads + ENGINES; }

static void use_clocks(Block* b) {
    if (b->clocks_in_use) return;
    b->clocks_in_use = true;
    std::fill_n(b->worker->clocks.begin(), size_t(b->nthreads) * (b->nthreads + ENGINES), 0);
}

static void join(uint32_t* into, const uint32_t* from, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) into[i] = std::max(into[i], from[i]);
}

/// Gives each of the fibers what all of them have seen and done.
template <class Each>
static void join_fibers(Block* b, Each each) {
    use_clocks(b);
    const uint32_t n = b->nthreads + ENGINES;
    uint32_t* all = b->worker->joined.data();
    std::fill_n(all, n, 0);
    each([&](Fiber* f) {
        join(all, f->seen, n);
        all[f->index] = std::max(all[f->index], f->clock);
    });
    each([&](Fiber* f) {
        std::copy_n(all, n, f->seen);
        f->clock++;
    });
}

void check_barrier(Block* b, Fiber* waiting, bool whole) {
    auto each = [&](auto act) {
        for (Fiber* f = waiting; f; f = f->next_waiting) act(f);
    };
    // A whole-block barrier still has to pass on what single threads have seen of the copy engines.
    if (!whole || b->clocks_in_use) join_fibers(b, each);
    if (!whole) return;
    const uint32_t epoch = ++b->worker->epoch;
    each([&](Fiber* f) { f->epoch = epoch; });
}

void check_warp_order(const Warp* warp, uint32_t lanes) {
    Block* b = cur->block;
    join_fibers(b, [&](auto act) {
        for (int l = 0; l < 32; l++) {
            if (lanes >> l & 1) act(&b->fibers[warp->index * 32 + l]);
        }
    });
}

void release(uint32_t* object) {
    use_clocks(cur->block);
    Fiber* f = cur;
    join(object, f->seen, clocks());
    object[f->index] = std::max(object[f->index], f->clock);
    f->clock++;
}

void acquire(const uint32_t* object) {
    use_clocks(cur->block);
    join(cur->seen, object, clocks());
}

Issue issue() {
    Fiber* f = cur;
    use_clocks(f->block);
    Issue made{f->index, f->epoch, {f->seen, f->seen + clocks()}};
    made.seen[f->index] = std::max(made.seen[f->index], f->clock);
    f->clock++;
    return made;
}

EngineScope::EngineScope(Block* block, uint32_t engine, Issue& issue) : fiber{}, before(cur) {
    fiber.block = block;
    fiber.tid = block->fibers[issue.thread].tid;
    fiber.index = block->nthreads + engine;
    fiber.epoch = issue.epoch;
    fiber.seen = issue.seen.data();
    fiber.clock = ++block->worker->engine_clocks[engine];
    cur = &fiber;
}

EngineScope::~EngineScope() { cur = before; }

}  // namespace cuemu
#endif
