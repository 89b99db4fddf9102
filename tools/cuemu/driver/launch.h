// Executing a kernel launch.
#pragma once
#include <memory>
#include <vector>

#include "module.h"

namespace cuemu {

struct Shape {
    uint32_t grid[3], block[3], dynamic_shared;
};

/// Copies of a launch's arguments, as they were at the call.
class Arguments {
   public:
    Arguments(const KernelEntry* kernel, void** params);
    void** pointers() { return params.data(); }

   private:
    std::vector<char> bytes;
    std::vector<void*> params;
};

/// What CUDA refuses at the call: sizes past the device's, the kernel's launch bounds and shared memory.
int check_shape(const Function& f, const Shape& shape);
/// Blocks that fit a multiprocessor; registers are unknown and don't count.
int occupancy(const Function& f, int threads, size_t dynamic_shared);
/// Runs all blocks and gives the error of what they reported.
int run_launch(const Function& f, const Shape& shape, Arguments& arguments);
/// Prepares the workers.
void start_workers();
/// The next number of the driver's own generator (schedules, stream orders).
uint64_t driver_random();

}  // namespace cuemu
