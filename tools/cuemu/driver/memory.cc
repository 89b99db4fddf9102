#include "memory.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <list>
#include <map>

#include "config.h"

namespace cuemu {

Arena arena;

namespace {
constexpr uint64_t PAGE_BYTES = 4096;
constexpr uint64_t ARENA_BYTES = 64ull << 30;
constexpr uint64_t ARENA_HINT = 0x600000000000;  // easily told from host addresses
constexpr uint64_t ALIGNMENT = 16;               // of the end of an allocation, so that an overrun meets the guard page

struct Range {
    uint64_t start, bytes;  // whole pages; the last one stays untouchable
};
struct Allocation {
    uint64_t bytes, number;
    Range pages;
    bool live;
};
std::map<uint64_t, Allocation> allocations;  // by address; freed ones too, until their pages are used again
std::list<Range> freed;                      // oldest first
uint64_t next_page, count, allocated, allocated_high;

uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

void* map_pages(uint64_t address, uint64_t bytes, int protection, int flags) {
    return mmap(reinterpret_cast<void*>(address), bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags,
                -1, 0);
}

bool take_pages(uint64_t bytes, Range& range) {
    if (next_page + bytes <= arena.high) {
        range = {next_page, bytes};
        next_page += bytes;
        return true;
    }
    for (auto it = freed.begin(); it != freed.end(); ++it) {
        if (it->bytes < bytes) continue;
        range = {it->start, bytes};
        allocations.erase(allocations.lower_bound(it->start), allocations.lower_bound(it->start + bytes));
        it->start += bytes;
        it->bytes -= bytes;
        if (it->bytes == 0) freed.erase(it);
        return true;
    }
    return false;
}
}  // namespace

bool map_arena() {
    void* p = map_pages(ARENA_HINT, ARENA_BYTES, PROT_NONE, 0);
    if (p == MAP_FAILED) return false;
    arena.low = reinterpret_cast<uint64_t>(p);
    arena.high = arena.low + ARENA_BYTES;
    next_page = arena.low + (1 << 20);  // what precedes the first allocation is device memory too
#ifdef CUEMU_CHECK
    void* bytes = map_pages(0, ARENA_BYTES, PROT_READ | PROT_WRITE, 0);
    void* touches = map_pages(0, ARENA_BYTES * sizeof(Touch), PROT_READ | PROT_WRITE, 0);
    if (bytes == MAP_FAILED || touches == MAP_FAILED) return false;
    arena.bytes = static_cast<uint8_t*>(bytes);
    arena.touches = static_cast<Touch*>(touches);
#endif
    return true;
}

static void mark(uint64_t address, size_t bytes, uint8_t state) {
    if (arena.bytes) memset(arena.bytes + (address - arena.low), state, bytes);
}

int device_alloc(uint64_t* address, size_t bytes) {
    if (bytes == 0) return 1;
    if (bytes > config.memory || allocated + bytes > config.memory) return 2;
    const uint64_t body = round_up(bytes, ALIGNMENT), pages = round_up(body, PAGE_BYTES);
    Range range;
    if (!take_pages(pages + PAGE_BYTES, range)) return 2;
    if (mprotect(reinterpret_cast<void*>(range.start), pages, PROT_READ | PROT_WRITE) != 0) return 2;
    if (config.poison) memset(reinterpret_cast<void*>(range.start), 0xFF, pages);
    *address = range.start + pages - body;
    mark(*address, bytes, ByteState::UNWRITTEN);
    allocations[*address] = {bytes, ++count, range, true};
    allocated += bytes;
    allocated_high = std::max(allocated_high, allocated);
    return 0;
}

static void release(uint64_t address, Allocation& a) {
    a.live = false;
    allocated -= a.bytes;
    mark(address, a.bytes, ByteState::OUTSIDE);
    // A fresh mapping, which merges with its neighbours: the kernel limits the number of mappings.
    map_pages(a.pages.start, a.pages.bytes, PROT_NONE, MAP_FIXED);
    freed.push_back(a.pages);
}

int device_free(uint64_t address) {
    auto it = allocations.find(address);
    if (it == allocations.end() || !it->second.live) return 1;
    release(address, it->second);
    return 0;
}

void device_free_all() {
    for (auto& [address, a] : allocations) {
        if (a.live) release(address, a);
    }
}

size_t device_allocated() { return allocated; }
size_t device_allocated_high() { return allocated_high; }
void device_allocated_reset_high() { allocated_high = allocated; }

bool in_allocation(uint64_t address, size_t bytes) {
    auto it = allocations.upper_bound(address);
    if (it == allocations.begin()) return false;
    --it;
    const uint64_t offset = address - it->first;
    return it->second.live && offset <= it->second.bytes && bytes <= it->second.bytes - offset;
}

std::string describe_address(uint64_t address) {
    char text[200];
    auto say = [&](const char* where, uint64_t distance, const Allocation& a) {
        snprintf(text, sizeof text, "address 0x%lx is %lu bytes %s %sallocation %lu (%lu bytes)", address, distance, where,
                 a.live ? "" : "FREED ", a.number, a.bytes);
        return std::string(text);
    };
    if (address < arena.low || address >= arena.high) {
        snprintf(text, sizeof text, "address 0x%lx isn't device memory (a host pointer?)", address);
        return text;
    }
    auto after = allocations.upper_bound(address);
    if (after != allocations.begin()) {
        auto& [start, a] = *std::prev(after);
        const uint64_t offset = address - start;
        if (offset < a.bytes) return say("into", offset, a);
        const uint64_t past = offset - a.bytes;
        if (after == allocations.end() || past <= after->first - address) return say("past the end of", past, a);
    }
    if (after != allocations.end()) return say("before", after->first - address, after->second);
    snprintf(text, sizeof text, "address 0x%lx has no allocation near it", address);
    return text;
}

void mark_written(uint64_t address, size_t bytes) { mark(address, bytes, ByteState::WRITTEN); }

uint64_t first_unwritten(uint64_t address, size_t bytes) {
    if (!arena.bytes) return 0;
    const uint8_t* begin = arena.bytes + (address - arena.low);
    const uint8_t* found = std::find(begin, begin + bytes, uint8_t(ByteState::UNWRITTEN));
    return found == begin + bytes ? 0 : address + (found - begin);
}

void mark_copied(uint64_t to, uint64_t from, size_t bytes) {
    if (arena.bytes) memmove(arena.bytes + (to - arena.low), arena.bytes + (from - arena.low), bytes);
}

void touches_begin(uint32_t launch) {
    if (!arena.touches || launch % TOUCH_LAUNCHES) return;
    madvise(arena.touches, ARENA_BYTES * sizeof(Touch), MADV_DONTNEED);
}

}  // namespace cuemu
