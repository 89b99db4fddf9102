// Device memory: a range of addresses where every allocation ends at a page that can't be touched.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

namespace cuemu {

/// States of a byte for the checks.
namespace ByteState {
enum : uint8_t { OUTSIDE, UNWRITTEN, WRITTEN };
}

/// Who accessed a byte in a launch: 12 bits of the launch, 20 of the block plus one. Blocks too many to tell apart count
/// as one.
struct Touch {
    uint32_t writer, reader;
};
constexpr uint32_t TOUCH_LAUNCHES = 1 << 12, TOUCH_MANY = (1 << 20) - 1;
static inline uint32_t touch_stamp(uint32_t launch, uint64_t block) {
    return launch % TOUCH_LAUNCHES << 20 | uint32_t(std::min<uint64_t>(block + 1, TOUCH_MANY - 1));
}
static inline bool same_launch(uint32_t a, uint32_t b) { return a && a >> 20 == b >> 20; }
static inline uint32_t touch_block(uint32_t stamp) { return (stamp & TOUCH_MANY) - 1; }
static inline uint32_t touch_many(uint32_t stamp) { return stamp | TOUCH_MANY; }

struct Arena {
    uint64_t low, high;
    // Of every byte; only in the checking build.
    uint8_t* bytes;
    Touch* touches;
};
extern Arena arena;

bool map_arena();

/// CUDA error codes: 0, 1 (no bytes), 2 (out of memory).
int device_alloc(uint64_t* address, size_t bytes);
/// After it the memory can't be touched; its addresses come back only when all others have been used.
int device_free(uint64_t address);
void device_free_all();
size_t device_allocated();
size_t device_allocated_high();
void device_allocated_reset_high();

/// Whether `bytes` bytes at the address belong to one live allocation.
bool in_allocation(uint64_t address, size_t bytes);
/// "address 0x... is 4 bytes past the end of allocation 7 (400 bytes)".
std::string describe_address(uint64_t address);

/// Tells the checks of writes and copies that aren't a kernel's.
void mark_written(uint64_t address, size_t bytes);
/// The first address of a range that nothing has written yet; 0: there is none, or the checks don't run.
uint64_t first_unwritten(uint64_t address, size_t bytes);
void mark_copied(uint64_t to, uint64_t from, size_t bytes);
/// Must precede every launch with its number: stamps of launches long past must not be taken for this one's.
void touches_begin(uint32_t launch);

}  // namespace cuemu
