// TMA: boxes of a global tensor into shared memory. A box is brought at its issue, or when no thread of the block can go
// on, in any order: in between its destination holds poison.
#include "../include/cuemu/ptx_async.h"
#include "../include/cuemu/tensor_map.h"
#include "ptx_state.h"

namespace cuemu {
namespace {

constexpr uint32_t CHUNK = 16;  // bytes that a swizzle keeps together

uint32_t box_rows(const TensorMap& map) {
    uint32_t rows = 1;
    for (int i = 1; i < map.rank; i++) rows *= map.box[i];
    return rows;
}

uint32_t row_bytes(const TensorMap& map) { return uint32_t(map.box[0]) * map.element_bytes; }

/// Global memory of row `row` of the box, at the tensor's dimension 0 = 0; null where the row is outside the tensor.
const char* tensor_row(const TensorMap& map, const int32_t* start, uint32_t row) {
    uint64_t address = map.base;
    for (int i = 1; i < map.rank; i++) {
        const int64_t at = int64_t(start[i]) + row % map.box[i];
        row /= map.box[i];
        if (at < 0 || at > map.last[i]) return nullptr;
        address += uint64_t(at) * map.strides[i - 1];
    }
    return reinterpret_cast<const char*>(address);
}

/// Row `row` of the box, in the order of its elements; those outside the tensor are zeros.
void read_row(char* to, const TensorMap& map, const BoxInFlight& box, uint32_t row) {
    const char* from = tensor_row(map, box.start, row);
    const int64_t begin = box.start[0], end = begin + map.box[0];
    const int64_t first = begin < 0 ? 0 : begin, stop = end > int64_t(map.last[0]) + 1 ? int64_t(map.last[0]) + 1 : end;
    memset(to, 0, row_bytes(map));
    if (!from || first >= stop) return;
    const char* source = from + first * map.element_bytes;
    const uint32_t bytes = uint32_t(stop - first) * map.element_bytes;
    check_access(source, bytes, Access::Read, "TMA source", box.file, box.line);
    memcpy(to + (first - begin) * map.element_bytes, source, bytes);
}

/// Calls `f` with the shared memory of each chunk of the box, in the order of its elements.
template <class F>
void for_chunks(Block* block, const TensorMap& map, uint32_t to, uint32_t row, F&& f) {
    for (uint32_t at = 0; at < row_bytes(map); at += CHUNK)
        f(block->smem + swizzled(to + row * row_bytes(map) + at, map.swizzle), at);
}

void write_box(Block* block, const BoxInFlight& box) {
    const TensorMap& map = *static_cast<const TensorMap*>(box.map);
    char elements[256 * 8];
    for (uint32_t row = 0; row < box_rows(map); row++) {
        read_row(elements, map, box, row);
        for_chunks(block, map, box.to, row, [&](char* chunk, uint32_t at) {
            check_access(chunk, CHUNK, Access::Write, "TMA", box.file, box.line);
            memcpy(chunk, elements + at, CHUNK);
        });
    }
}

void bring(Block* block, BoxInFlight& box) {
    Mbarrier& barrier = block->async.state->mbarriers[box.barrier];
#ifdef CUEMU_CHECK
    // A thread of its own: after the issue, before the phase that it completes.
    EngineScope actor(block, box.barrier, box.issued);
#else
    ActAs actor(box.issuer);
#endif
    write_box(block, box);
    const TensorMap& map = *static_cast<const TensorMap*>(box.map);
#ifdef CUEMU_CHECK
    release(barrier.arrived.data());
#endif
    announce_bytes(barrier, -int64_t(box_rows(map)) * row_bytes(map), box.file, box.line);
    complete_phase_if_due(barrier);
}

const TensorMap& need_map(const void* pointer, uint32_t rank, const char* file, int line) {
    const TensorMap& map = *static_cast<const TensorMap*>(pointer);
    if (uintptr_t(pointer) % 64 || map.magic != TensorMap::MAGIC || map.rank != rank) {
        report(LAUNCH_FAILED, "TMA at %s:%d: not a %u-D tensor map made by cuTensorMapEncodeTiled", base_name(file),
               line, rank);
        die();
    }
    return map;
}

}  // namespace

void BlockAsync::reset(Block* block) {
    if (!state) state = new AsyncState;
    state->mbarriers.clear();
    state->boxes.clear();
    state->warps.assign(block->nwarps, WarpAsync{});
#ifdef CUEMU_CHECK
    for (std::vector<uint32_t>& arrivals : state->arrivals) arrivals.clear();
#endif
}

bool BlockAsync::pending() const { return !state->boxes.empty(); }

void BlockAsync::complete_one(Block* block) {
    std::vector<BoxInFlight>& boxes = state->boxes;
    const size_t index = block->launch->schedule == Schedule::Random ? next_random(block) % boxes.size() : 0;
    BoxInFlight box = std::move(boxes[index]);
    boxes.erase(boxes.begin() + index);
    bring(block, box);
}

void tma_load(uint32_t to, const void* pointer, uint32_t rank, const int32_t* start, uint32_t barrier, const char* file,
              int line) {
    need_cc90("TMA", file, line);
    const TensorMap& map = need_map(pointer, rank, file, line);
    if (to % swizzle_repeat(map.swizzle)) {
        report(MISALIGNED_ADDRESS, "TMA at %s:%d: shared destination 0x%x is not %u-byte aligned", base_name(file),
               line, to, swizzle_repeat(map.swizzle));
        die();
    }
    if (int64_t(start[0]) * map.element_bytes % 16) {
        report(ILLEGAL_INSTRUCTION, "TMA at %s:%d: the box begins at element %d of the innermost dimension, which is not a whole number of 16 bytes",
               base_name(file), line, start[0]);
        die();
    }
    smem_ptr(to, box_rows(map) * row_bytes(map), "TMA", file, line);
    BoxInFlight box{};
    box.map = pointer;
    memcpy(box.start, start, sizeof box.start);
    box.to = to;
    box.barrier = find_mbarrier(barrier, "TMA", file, line);
    if (!cur->block->async.state->mbarriers[box.barrier].fenced) {
        report(LAUNCH_FAILED, "TMA at %s:%d: no mbarrier_fence_init after mbarrier_init of 0x%x", base_name(file), line,
               barrier);
        die();
    }
    box.issuer = cur;
    box.file = file;
    box.line = line;
#ifdef CUEMU_CHECK
    box.issued = issue();
#endif
    Block* block = cur->block;
    if (happens_at_once()) {
        bring(block, box);
        return;
    }
    for (uint32_t row = 0; row < box_rows(map); row++)
        for_chunks(block, map, to, row, [](char* chunk, uint32_t) { memset(chunk, 0xff, CHUNK); });
    block->async.state->boxes.push_back(std::move(box));
}

}  // namespace cuemu
