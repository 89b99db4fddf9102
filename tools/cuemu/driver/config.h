// The emulator's settings: the text of the environment variable CUEMU or of cuemu_configure, as "key=value" words.
#pragma once
#include <cstdint>
#include <string>

#include "cuemu/fiber.h"

namespace cuemu {

struct Config {
    std::string kernels;  // the folder of the twins
    Schedule schedule = Schedule::Fifo;
    uint64_t seed = 1;
    AsyncMode async = AsyncMode::Late;
    bool deferred = false;  // streams run only when they must, in a random order
    uint32_t cc = 90;
    uint32_t threads = 1;
    uint64_t memory = 4ull << 30;
    bool poison = true;
    std::string log;
    uint32_t devices = 1;
    int driver = 13000;  // the version it claims
};

/// What devices of a compute capability differ in, as far as programs ask.
struct Capability {
    uint32_t cc;
    int shared_optin, shared_multiprocessor;  // bytes
    int threads_multiprocessor, blocks_multiprocessor, multiprocessors, l2_bytes;
    /// Bytes of shared memory that each block costs beside its own: what the largest block leaves.
    int shared_reserved() const { return shared_multiprocessor - shared_optin; }
};

extern Config config;
const Capability& capability();

/// Sets the keys that stand in `text`; the empty string if all is well, else what isn't.
std::string configure(const std::string& text);

}  // namespace cuemu
