// The emulated libraries' own entry point: what their host functions read and write of the device's memory.
#include "api.h"
#include "memory.h"

using namespace cuemu;

/// Tells of an access by a host function in a stream; to be called before it. Not 0: it's out of bounds, and must not
/// happen. Reports become the error of the stream's operation.
ENTRY(cuemu_touch)(const void* pointer, size_t bytes, int write) {
    const uint64_t address = reinterpret_cast<uint64_t>(pointer);
    if (bytes == 0) return 0;
    if (!in_allocation(address, bytes)) {
        const bool inside = in_allocation(address, 1);
        const uint64_t wrong = inside ? address + bytes - 1 : address;
        add_report(ILLEGAL_ADDRESS, std::string("a library's ") + (write ? "write" : "read") + " of " + std::to_string(bytes) +
                                        " bytes is out of bounds: " + describe_address(wrong));
        return ILLEGAL_ADDRESS;
    }
    if (write) {
        mark_written(address, bytes);
    } else if (const uint64_t first = first_unwritten(address, bytes)) {
        add_report(LAUNCH_FAILED, "a library reads uninitialised global memory: " + describe_address(first));
    }
    return 0;
}
