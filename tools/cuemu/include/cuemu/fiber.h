// The emulated threads: one fiber per CUDA thread, a warp's pending collectives, a block's ready queue. Their code
// stands in runtime/; twins read the records and call the functions below.
#pragma once
#include <cstdint>
#include <vector>

#include "abi.h"
#include "async_state.h"
#include "language.h"

namespace cuemu {

struct Block;
struct Warp;
struct Launch;
struct Worker;

enum class Schedule : int { Fifo, Reverse, Random };
/// When asynchronous copies and matrix products take effect: at once, as late as the program allows, or at random.
enum class AsyncMode : int { Eager, Late, Random };

/// The codes of CUresult that the emulator gives.
enum Error : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_TIMEOUT = 702,
    MISALIGNED_ADDRESS = 716,
    ILLEGAL_INSTRUCTION = 715,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_UNMATCHED = 903,
};

struct BarrierResult {
    uint32_t any, all, count;
};

enum class State : uint8_t { Ready, Waiting, Done };

struct Fiber {
    void* sp;  // saved stack pointer while it isn't running; null before it begins
    uint32_t stack;  // the number of its stack, from then on
    uint3 tid;
    uint32_t index;  // linear index in the block
    uint32_t lane;
    Warp* warp;
    Block* block;
    State state;
    const char* what;  // what it waits for, and where
    const char* file;
    int line;
    Fiber* next_waiting;
    BarrierResult result;
    FiberAsync async;
#ifdef CUEMU_CHECK
    uint32_t clock;  // ticks at every ordering operation
    uint32_t epoch;  // whole-block barriers passed: what threads did in earlier epochs happened before
    uint32_t* seen;  // per thread and copy engine: the clock up to which its accesses happened before this fiber's
#endif
};

/// One collective that some lanes of a warp have reached and others not yet.
struct Collective;
struct Rendezvous {
    uint32_t mask;     // lanes named; 0: the slot is free
    uint32_t arrived;  // lanes there
    const Collective* kind;
    const char* file;
    int line;
    void* args[32];  // per lane: its arguments, on its own stack
};

struct Warp {
    uint32_t alive;  // lanes that have not returned
    uint32_t index;
    Rendezvous pending[8];
};

struct Barrier {
    uint32_t arrived;
    Fiber* waiting;  // last to arrive first
    BarrierResult result;
    const char* file;
    int line;
};

/// Barrier 0 is __syncthreads; 1 to 15 are the named ones.
constexpr int BARRIERS = 16;
/// Copy engines that the race check tells apart (one per mbarrier).
constexpr int ENGINES = 64;

struct Block {
    const Launch* launch;
    Worker* worker;
    uint3 bid;
    uint64_t index;  // linear index in the grid
    uint32_t nthreads, nwarps, alive;
    Fiber* fibers;
    Warp* warps;
    Barrier barriers[BARRIERS];
    char* smem;  // the window of dynamic shared memory
    uint32_t smem_size;
    // Ready fibers: a ring.
    std::vector<uint32_t> ready;
    uint32_t ready_head, ready_count;
    uint64_t random;
    uint32_t spins, spins_alone;
    void* scheduler_sp;
    BlockAsync async;
#ifdef CUEMU_CHECK
    uint32_t first_epoch;  // of this block: an older stamp is of an earlier one
    bool clocks_in_use;  // something finer than a whole-block barrier has ordered accesses in this block
#endif
};

/// One kernel launch, as every worker sees it.
struct Launch {
    const KernelEntry* kernel;
    const ModuleTable* module;
    void** params;
    uint32_t grid[3], block[3];
    uint32_t dynamic_shared;
    uint32_t cc;  // compute capability: 80, 86, 89, 90
    Schedule schedule;
    AsyncMode async;
    bool poison;
    uint64_t seed;
    uint64_t nblocks;
    const uint32_t* order;  // of the blocks; null: ascending
    uint64_t* next_block;
    uint32_t* running;  // workers that still have blocks
    volatile int* abort;
    uint32_t id;
};

/// The fiber that runs on this thread of the host; null outside kernels. Never write to it but to lend another lane's
/// identity to a check, and then put it back.
extern __thread Fiber* cur __attribute__((tls_model("initial-exec"))) CUEMU_API;

static inline Fiber* lane_fiber(const Warp* warp, int lane) { return &cur->block->fibers[warp->index * 32 + lane]; }

/// Reports an error of the running kernel: "kernel K block (x,y,z) thread (x,y,z): ..." and what the format says. The
/// launch fails with `code`; execution goes on unless `die` follows.
CUEMU_API void report(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));
/// Ends the launch (all its blocks).
[[noreturn]] CUEMU_API void die();
[[noreturn]] CUEMU_API void trap(const char* file, int line);
/// Leaves the current fiber, which has been marked Waiting, until something makes it ready again.
CUEMU_API void wait_ready(const char* what, const char* file, int line);
CUEMU_API void make_ready(Fiber* fiber);
/// Lets the other fibers run; for loops that wait for another thread's write.
CUEMU_API void spin_yield(const char* file, int line);
/// The next number of the block's own generator.
CUEMU_API uint64_t next_random(Block* block);

}  // namespace cuemu
