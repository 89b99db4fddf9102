#include "launch.h"

#include <signal.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>

#include "config.h"
#include "memory.h"
#include "report.h"

namespace cuemu {

Arguments::Arguments(const KernelEntry* kernel, void** given) {
    constexpr size_t ALIGNMENT = 64;  // a tensor map's
    size_t total = ALIGNMENT;
    std::vector<size_t> offsets;
    for (uint32_t i = 0; i < kernel->nparams; i++) {
        offsets.push_back(total);
        total += (kernel->sizes[i] + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    bytes.resize(total + ALIGNMENT);
    char* base = bytes.data() + (ALIGNMENT - reinterpret_cast<uintptr_t>(bytes.data()) % ALIGNMENT);
    for (uint32_t i = 0; i < kernel->nparams; i++) {
        params.push_back(base + offsets[i]);
        memcpy(params.back(), given[i], kernel->sizes[i]);
    }
}

int check_shape(const Function& f, const Shape& s) {
    const char* name = f.kernel->name;
    const uint64_t threads = uint64_t(s.block[0]) * s.block[1] * s.block[2];
    const uint32_t *g = s.grid, *b = s.block;
    if (!g[0] || !g[1] || !g[2] || !threads) {
        return fail(INVALID_VALUE, "kernel %s: grid (%u,%u,%u), block (%u,%u,%u): no size may be 0", name, g[0], g[1],
                    g[2], b[0], b[1], b[2]);
    }
    if (g[0] > 0x7fffffff || g[1] > 65535 || g[2] > 65535 || threads > MAX_THREADS || b[2] > 64) {
        return fail(INVALID_VALUE, "kernel %s: grid (%u,%u,%u), block (%u,%u,%u) is past the device's limits", name, g[0],
                    g[1], g[2], b[0], b[1], b[2]);
    }
    if (threads > uint64_t(f.max_threads)) {
        return fail(INVALID_VALUE, "kernel %s: %lu threads in a block, its launch bounds are %d", name, threads,
                    f.max_threads);
    }
    if (s.dynamic_shared > uint32_t(f.dynamic_limit)) {
        return fail(INVALID_VALUE, "kernel %s: %u bytes of dynamic shared memory, allowed are %d beside %d static "
                    "ones (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)", name, s.dynamic_shared, f.dynamic_limit,
                    f.static_shared);
    }
    return SUCCESS;
}

int occupancy(const Function& f, int threads, size_t dynamic_shared) {
    const Capability& c = capability();
    if (threads < 1 || threads > f.max_threads || int(dynamic_shared) > f.dynamic_limit) return 0;
    const int shared = f.static_shared + int(dynamic_shared) + c.shared_reserved();
    const int by_shared = shared ? c.shared_multiprocessor / shared : c.blocks_multiprocessor;
    const int by_threads = c.threads_multiprocessor / ((threads + 31) / 32 * 32);
    return std::min({by_shared, by_threads, c.blocks_multiprocessor});
}

uint64_t driver_random() {
    static uint64_t state = 0;
    if (!state) state = config.seed * 0x9E3779B97F4A7C15ull | 1;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

namespace {
/// Threads that run blocks beside the caller's.
class Pool {
   public:
    void start(uint32_t threads) {
        for (uint32_t i = 1; i < threads; i++) {
            std::thread([this] { serve(); }).detach();
            others++;
        }
    }
    void run(const std::function<void()>& job) {
        {
            std::lock_guard<std::mutex> lock(mutex);
            current = &job;
            round++;
            busy = others;
        }
        wake.notify_all();
        job();
        std::unique_lock<std::mutex> lock(mutex);
        idle.wait(lock, [&] { return busy == 0; });
    }

   private:
    void serve() {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            wake.wait(lock, [&] { return round != seen; });
            seen = round;
            const auto* job = current;
            lock.unlock();
            (*job)();
            lock.lock();
            if (--busy == 0) idle.notify_one();
        }
    }
    std::mutex mutex;
    std::condition_variable wake, idle;
    const std::function<void()>* current = nullptr;
    uint64_t round = 0;
    uint32_t others = 0, busy = 0;
};
Pool* pool;              // never destroyed: its threads never end
Worker* callers_worker;  // of whichever thread holds the driver's lock

/// A kernel's fault must not be handled on the fiber's own stack, which may be what has overflowed.
class SignalStack {
   public:
    explicit SignalStack(const Worker* worker) {
        stack_t stack{};
        stack.ss_sp = worker->signal_stack;
        stack.ss_size = SMEM_BYTES;
        sigaltstack(&stack, &before);
    }
    ~SignalStack() { sigaltstack(&before, nullptr); }

   private:
    stack_t before;
};

std::vector<uint32_t> block_order(uint64_t n) {
    std::vector<uint32_t> order;
    if (config.schedule == Schedule::Fifo) return order;
    order.resize(n);
    for (uint64_t i = 0; i < n; i++) order[i] = config.schedule == Schedule::Reverse ? n - 1 - i : i;
    if (config.schedule == Schedule::Random) {
        for (uint64_t i = n; i > 1; i--) std::swap(order[i - 1], order[driver_random() % i]);
    }
    return order;
}
}  // namespace

void start_workers() {
    install_fault_handlers();
    callers_worker = new_worker();
    pool = new Pool;
    pool->start(config.threads);
}

int run_launch(const Function& f, const Shape& shape, Arguments& arguments) {
    static uint32_t launches = 0;
    for (uint32_t i = 0; i < f.kernel->nparams; i++) {
        if (!(f.kernel->pointers >> i & 1)) continue;
        uint64_t address;
        memcpy(&address, arguments.pointers()[i], sizeof address);
        if (address == 0 || in_allocation(address, 0)) continue;
        char text[400];
        snprintf(text, sizeof text, "kernel %s, pointer parameter %u: %s", f.kernel->name, i,
                 describe_address(address).c_str());
        add_report(ILLEGAL_ADDRESS, text);
        return take_report_code();
    }
    uint64_t next = 0;
    uint32_t running = 0;
    volatile int abort = 0;
    Launch launch{};
    launch.kernel = f.kernel;
    launch.module = f.twin;
    launch.params = arguments.pointers();
    std::copy_n(shape.grid, 3, launch.grid);
    std::copy_n(shape.block, 3, launch.block);
    launch.dynamic_shared = shape.dynamic_shared;
    launch.cc = config.cc;
    launch.schedule = config.schedule;
    launch.async = config.async;
    launch.poison = config.poison;
    launch.seed = driver_random();
    launch.nblocks = uint64_t(shape.grid[0]) * shape.grid[1] * shape.grid[2];
    const std::vector<uint32_t> order = block_order(launch.nblocks);
    launch.order = order.empty() ? nullptr : order.data();
    launch.next_block = &next;
    launch.running = &running;
    launch.abort = &abort;
    launch.id = ++launches;
    touches_begin(launch.id);
    check_launch_begin();
    // Waking other threads costs more than a small launch.
    constexpr uint64_t WORTH_SHARING = 4096;  // threads
    const uint64_t threads = launch.nblocks * shape.block[0] * shape.block[1] * shape.block[2];
    if (config.threads > 1 && launch.nblocks > 1 && threads >= WORTH_SHARING) {
        const auto caller = std::this_thread::get_id();
        pool->run([&] {
            static thread_local Worker* own = nullptr;
            Worker* worker = std::this_thread::get_id() == caller ? callers_worker : own ? own : own = new_worker();
            SignalStack stack(worker);
            run_blocks(&launch, worker);
        });
    } else {
        SignalStack stack(callers_worker);
        run_blocks(&launch, callers_worker);
    }
    return take_report_code();
}

}  // namespace cuemu
