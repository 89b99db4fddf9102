// What the parts of the runtime and the driver know of each other, and twins don't.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cuemu/check.h"
#include "cuemu/fiber.h"
#include "cuemu/warp.h"

namespace cuemu {

constexpr size_t STACK_BYTES = 64 << 10;  // of a fiber, with its guard page
constexpr uint32_t MAX_THREADS = 1024;    // of a block
constexpr size_t SMEM_BYTES = 256 << 10;  // room for any block's dynamic shared memory
constexpr size_t PAGE = 4096;

/// A memory fault (or division by zero) of kernel code, noted by the signal handler.
struct Fault {
    int signal;  // 0: none
    bool write, general_protection;
    uint64_t address, pc;
};

struct Shadow;

/// What one thread of the host needs to run blocks.
struct Worker {
    char* stacks;
    std::vector<uint32_t> free_stacks;  // the last given back at the end
    uint32_t free_count = 0;
    char* smem;  // SMEM_BYTES between guard pages; windows end at its end
    void* signal_stack;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Block block;
    char* static_shared;  // this thread's copy of the module's
    size_t static_shared_size;
    Fault fault;
#ifdef CUEMU_CHECK
    uint32_t epoch;                // the last one given out
    std::vector<uint32_t> clocks;  // of all fibers
    std::vector<uint32_t> joined;
    std::vector<Shadow> dynamic_shadow, static_shadow;
    uint32_t engine_clocks[ENGINES];
#endif
};

/// Maps the stacks and the shared memory; never freed.
Worker* new_worker();
/// Runs blocks of a launch on this thread until there are none left or the launch is aborted.
void run_blocks(const Launch* launch, Worker* worker);
void run_block(Block* block);
/// The worker whose fibers run on this thread; null outside run_blocks.
extern thread_local Worker* active_worker;

/// Installs the handlers by which faults of kernels become reports; other faults go to the handlers before.
void install_fault_handlers();
/// Reports the fault that the worker noted.
void report_fault(Worker* worker);

/// "file:line" of an address in a twin, with the call sites into which it was inlined; the address if that fails.
std::string source_line(uint64_t pc);
/// A path without its folders.
const char* base_name(const char* path);

/// Where in the process's copy of a module's static shared memory this thread's lies.
void locate_static_shared(const ModuleTable* module, Worker* worker);
/// Bytes of all static __shared__ variables of a module.
size_t static_shared_size(const ModuleTable* module);

// Ready queue of a block.
void push_back(Block* block, uint32_t fiber);
void push_front(Block* block, uint32_t fiber);
/// Leaves the current fiber, already queued or marked waiting.
void switch_away();
/// Completes what waited only for this fiber, which has returned.
void release_warp_after_exit(Fiber* fiber);
void release_barrier_after_exit(Fiber* fiber);

#ifdef CUEMU_CHECK
void check_launch_begin();
void check_block_begin(Block* block);
void check_fiber_begin(Fiber* fiber);
/// Orders what the waiting fibers did before a barrier before what they do after it. `whole`: all fibers of the block.
void check_barrier(Block* block, Fiber* waiting, bool whole);
/// The same for the lanes of a warp's collective.
void check_warp_order(const Warp* warp, uint32_t lanes);
#else
static inline void check_launch_begin() {}
static inline void check_block_begin(Block*) {}
static inline void check_fiber_begin(Fiber*) {}
static inline void check_barrier(Block*, Fiber*, bool) {}
static inline void check_warp_order(const Warp*, uint32_t) {}
#endif

}  // namespace cuemu
