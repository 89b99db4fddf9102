// Shared memory: the dynamic window, and where static __shared__ variables lie.
#include "cuemu/shared.h"

#include <link.h>

#include <map>
#include <mutex>

#include "cuemu/builtins.h"
#include "runtime.h"

namespace cuemu {

unsigned char* dynamic_shared() { return reinterpret_cast<unsigned char*>(cur->block->smem); }

uint32_t shared_address(const void* p, const char* file, int line) {
    const Block* b = cur->block;
    const uintptr_t offset = uintptr_t(p) - uintptr_t(b->smem);
    if (offset > b->smem_size) {
        report(ILLEGAL_ADDRESS, "smem_u32 at %s:%d: the pointer isn't into dynamic shared memory (static __shared__ "
               "variables have no 32-bit address here)", base_name(file), line);
        die();
    }
    return offset;
}

char* smem_ptr(uint32_t address, uint32_t n, const char* what, const char* file, int line) {
    const Block* b = cur->block;
    if (uint64_t(address) + n > b->launch->dynamic_shared) {
        report(ILLEGAL_ADDRESS, "%s at %s:%d: shared address 0x%x (%u bytes) is outside the block's %u bytes", what,
               base_name(file), line, address, n, b->launch->dynamic_shared);
        die();
    }
    return b->smem + address;
}

#ifdef CUEMU_CHECK
uint3 thread_index() { return cur->tid; }
uint3 block_index() { return cur->block->bid; }
dim3 block_extent() { return {cur->block->launch->block[0], cur->block->launch->block[1], cur->block->launch->block[2]}; }
dim3 grid_extent() { return {cur->block->launch->grid[0], cur->block->launch->grid[1], cur->block->launch->grid[2]}; }
uint32_t lane_index() { return cur->lane; }
#endif

namespace {
struct Segment {
    ptrdiff_t anchor;  // from the segment's start to the anchor
    size_t size;
    size_t variables;  // bytes without the anchor
};
struct Search {
    uintptr_t anchor;
    Segment found;
};
}  // namespace

/// The segment of a module, whose anchor on this thread is given.
static Segment segment_of(const ModuleTable* module, const char* anchor) {
    // A twin has no thread-local variables but its static __shared__ ones and the anchor: its whole thread-local
    // segment is static shared memory. The segment's shape is the module's, its address each thread's.
    static std::mutex mutex;
    static std::map<const ModuleTable*, Segment> segments;
    std::lock_guard<std::mutex> lock(mutex);
    auto it = segments.find(module);
    if (it == segments.end()) {
        Search search{uintptr_t(anchor), {0, 0, 0}};
        dl_iterate_phdr(
            [](dl_phdr_info* info, size_t, void* data) {
                auto* s = static_cast<Search*>(data);
                const auto start = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
                for (int i = 0; start && i < info->dlpi_phnum; i++) {
                    const auto& header = info->dlpi_phdr[i];
                    if (header.p_type != PT_TLS || s->anchor - start >= header.p_memsz) continue;
                    // The anchor alone is initialised data: it takes the first bytes, up to the variables' alignment.
                    s->found = {ptrdiff_t(s->anchor - start), header.p_memsz, header.p_memsz - header.p_align};
                    return 1;
                }
                return 0;
            },
            &search);
        it = segments.emplace(module, search.found).first;
    }
    return it->second;
}

void locate_static_shared(const ModuleTable* module, Worker* worker) {
    char* anchor = module->static_shared();  // makes the dynamic linker give this thread its copy
    const Segment segment = segment_of(module, anchor);
    worker->static_shared = anchor - segment.anchor;
    worker->static_shared_size = segment.size;
}

size_t static_shared_size(const ModuleTable* module) { return segment_of(module, module->static_shared()).variables; }

}  // namespace cuemu
