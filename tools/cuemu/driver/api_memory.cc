// Entry points: device memory, pinned host memory, copies, fills.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "api.h"
#include "config.h"
#include "memory.h"
#include "stream.h"

namespace cuemu {

static std::map<uintptr_t, size_t> pinned;  // address -> bytes
static char memory_pool;                        // there is one memory pool, and its address is its handle

static bool is_pinned(const void* p, size_t bytes) {
    const auto address = reinterpret_cast<uintptr_t>(p);
    auto it = pinned.upper_bound(address);
    if (it == pinned.begin()) return false;
    --it;
    return address + bytes <= it->first + it->second;
}

static int allocate(uint64_t* address, size_t bytes) {
    int error = device_alloc(address, bytes);
    // Frees that are still queued count as done: a pool gives such memory out again in the stream's order.
    if (error == OUT_OF_MEMORY && config.deferred && !synchronize_all()) error = device_alloc(address, bytes);
    if (error == INVALID_VALUE) return fail(error, "an allocation of 0 bytes");
    if (error) {
        return fail(error, "%zu bytes wanted, %zu of the device's %zu are in use", bytes, device_allocated(),
                    size_t(config.memory));
    }
    return SUCCESS;
}

static int outside(const char* call, uint64_t address, size_t bytes) {
    return fail(INVALID_VALUE, "%s of %zu bytes: %s", call, bytes, describe_address(address).c_str());
}

/// Of a pinned buffer's content: FNV-1a over words.
static uint64_t fingerprint(const void* p, size_t bytes) {
    const auto* c = static_cast<const unsigned char*>(p);
    uint64_t hash = 0xcbf29ce484222325;
    for (; bytes >= 8; bytes -= 8, c += 8) {
        uint64_t word;
        memcpy(&word, c, 8);
        hash = (hash ^ word) * 0x100000001b3;
        hash ^= hash >> 32;
    }
    for (; bytes; bytes--) hash = (hash ^ *c++) * 0x100000001b3;
    return hash;
}

static int host_to_device(uint64_t to, const void* from, size_t bytes, void* handle, bool asynchronous) {
    if (bytes == 0) return SUCCESS;
    STREAM(stream, handle);
    if (!in_allocation(to, bytes)) return outside("copy to the device", to, bytes);
    auto copy = [to, bytes](const void* source) {
        // The memory may have been freed since the call.
        if (!in_allocation(to, bytes)) {
            add_report(ILLEGAL_ADDRESS, "copy to the device: " + describe_address(to));
            return take_report_code();
        }
        memcpy(reinterpret_cast<void*>(to), source, bytes);
        mark_written(to, bytes);
        return int(SUCCESS);
    };
    if (asynchronous && is_pinned(from, bytes)) {
        // The driver reads the buffer when the copy's turn comes; until then it must not change. A captured copy may
        // find another content at each of the graph's launches.
        const bool watch = config.deferred && !stream->capture;
        const uint64_t before = watch ? fingerprint(from, bytes) : 0;
        return enqueue(stream, [=] {
            if (watch && fingerprint(from, bytes) != before) {
                add_report(LAUNCH_FAILED, "the pinned source of a copy of " + std::to_string(bytes) +
                                              " bytes to the device was changed before the copy was done");
                return take_report_code();
            }
            return copy(from);
        });
    }
    const auto* start = static_cast<const char*>(from);
    auto staged = std::make_shared<std::vector<char>>(start, start + bytes);
    const int error = enqueue(stream, [=] { return copy(staged->data()); });
    return error || asynchronous ? error : synchronize(stream);
}

static int device_to_host(void* to, uint64_t from, size_t bytes, void* handle, bool asynchronous) {
    if (bytes == 0) return SUCCESS;
    STREAM(stream, handle);
    if (!in_allocation(from, bytes)) return outside("copy from the device", from, bytes);
    const int error = enqueue(stream, [=] {
        if (!in_allocation(from, bytes)) {
            add_report(ILLEGAL_ADDRESS, "copy from the device: " + describe_address(from));
            return take_report_code();
        }
        memcpy(to, reinterpret_cast<const void*>(from), bytes);
        return int(SUCCESS);
    });
    // A copy to pageable memory is done when the call returns.
    return error || (asynchronous && is_pinned(to, bytes)) ? error : synchronize(stream);
}

static int device_to_device(uint64_t to, uint64_t from, size_t bytes, void* handle) {
    if (bytes == 0) return SUCCESS;
    STREAM(stream, handle);
    if (!in_allocation(to, bytes)) return outside("copy within the device", to, bytes);
    if (!in_allocation(from, bytes)) return outside("copy within the device", from, bytes);
    return enqueue(stream, [=] {
        for (uint64_t address : {to, from}) {
            if (in_allocation(address, bytes)) continue;
            add_report(ILLEGAL_ADDRESS, "copy within the device: " + describe_address(address));
            return take_report_code();
        }
        memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
        mark_copied(to, from, bytes);
        return int(SUCCESS);
    });
}

template <class T>
static int fill(uint64_t to, T value, size_t count, void* handle, bool asynchronous) {
    const size_t bytes = count * sizeof(T);
    if (bytes == 0) return SUCCESS;
    STREAM(stream, handle);
    if (!in_allocation(to, bytes)) return outside("fill", to, bytes);
    const int error = enqueue(stream, [=] {
        if (!in_allocation(to, bytes)) {
            add_report(ILLEGAL_ADDRESS, "fill: " + describe_address(to));
            return take_report_code();
        }
        std::fill_n(reinterpret_cast<T*>(to), count, value);
        mark_written(to, bytes);
        return int(SUCCESS);
    });
    return error || asynchronous ? error : synchronize(stream);
}

}  // namespace cuemu

using namespace cuemu;

ENTRY(cuMemAlloc_v2)(uint64_t* address, size_t bytes) {
    ENTER_CONTEXT();
    return allocate(address, bytes);
}
ENTRY(cuMemAllocAsync)(uint64_t* address, size_t bytes, void* handle) {
    ENTER();
    STREAM(stream, handle);
    if (stream->capture) return fail(STREAM_CAPTURE_UNSUPPORTED, "allocations in graphs aren't emulated");
    return allocate(address, bytes);
}
ENTRY(cuMemFree_v2)(uint64_t address) {
    ENTER_CONTEXT();
    if (int error = synchronize_all()) return error;
    if (address && device_free(address)) return fail(INVALID_VALUE, "free: %s", describe_address(address).c_str());
    return SUCCESS;
}
ENTRY(cuMemFreeAsync)(uint64_t address, void* handle) {
    ENTER();
    STREAM(stream, handle);
    if (!in_allocation(address, 1)) return fail(INVALID_VALUE, "free: %s", describe_address(address).c_str());
    return enqueue(stream, [=] {
        if (!device_free(address)) return int(SUCCESS);
        add_report(INVALID_VALUE, "free: " + describe_address(address));
        return take_report_code();
    });
}
ENTRY(cuMemGetInfo_v2)(size_t* free, size_t* total) {
    ENTER_CONTEXT();
    *total = config.memory;
    *free = config.memory - device_allocated();
    return SUCCESS;
}

ENTRY(cuMemHostAlloc)(void** p, size_t bytes, unsigned) {
    ENTER_CONTEXT();
    if (bytes == 0) return fail(INVALID_VALUE, "a host allocation of 0 bytes");
    void* made = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED) return fail(OUT_OF_MEMORY, "%zu bytes of pinned host memory", bytes);
    if (config.poison) memset(made, 0xFF, bytes);
    pinned[reinterpret_cast<uintptr_t>(made)] = bytes;
    *p = made;
    return SUCCESS;
}
ENTRY(cuMemAllocHost_v2)(void** p, size_t bytes) { return cuMemHostAlloc(p, bytes, 0); }
ENTRY(cuMemFreeHost)(void* p) {
    std::lock_guard<std::recursive_mutex> lock(api_mutex());
    auto it = pinned.find(reinterpret_cast<uintptr_t>(p));
    if (it == pinned.end()) return fail(INVALID_VALUE, "cuMemFreeHost: not pinned memory");
    if (!sticky_error()) synchronize_all();
    munmap(p, it->second);
    pinned.erase(it);
    return sticky_error();
}
ENTRY(cuMemHostGetFlags)(unsigned* flags, void* p) {
    ENTER();
    *flags = 0;
    return is_pinned(p, 1) ? SUCCESS : INVALID_VALUE;
}

ENTRY(cuMemcpyHtoD_v2)(uint64_t to, const void* from, size_t bytes) {
    ENTER_CONTEXT();
    return host_to_device(to, from, bytes, nullptr, false);
}
ENTRY(cuMemcpyHtoDAsync_v2)(uint64_t to, const void* from, size_t bytes, void* stream) {
    ENTER();
    return host_to_device(to, from, bytes, stream, true);
}
ENTRY(cuMemcpyDtoH_v2)(void* to, uint64_t from, size_t bytes) {
    ENTER_CONTEXT();
    return device_to_host(to, from, bytes, nullptr, false);
}
ENTRY(cuMemcpyDtoHAsync_v2)(void* to, uint64_t from, size_t bytes, void* stream) {
    ENTER();
    return device_to_host(to, from, bytes, stream, true);
}
ENTRY(cuMemcpyDtoD_v2)(uint64_t to, uint64_t from, size_t bytes) {
    ENTER_CONTEXT();
    return device_to_device(to, from, bytes, nullptr);
}
ENTRY(cuMemcpyDtoDAsync_v2)(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    ENTER();
    return device_to_device(to, from, bytes, stream);
}
ENTRY(cuMemsetD8_v2)(uint64_t to, unsigned char value, size_t n) {
    ENTER_CONTEXT();
    return fill(to, value, n, nullptr, false);
}
ENTRY(cuMemsetD8Async)(uint64_t to, unsigned char value, size_t n, void* stream) {
    ENTER();
    return fill(to, value, n, stream, true);
}
ENTRY(cuMemsetD16Async)(uint64_t to, unsigned short value, size_t n, void* stream) {
    ENTER();
    return fill(to, value, n, stream, true);
}
ENTRY(cuMemsetD32Async)(uint64_t to, unsigned value, size_t n, void* stream) {
    ENTER();
    return fill(to, value, n, stream, true);
}

ENTRY(cuDeviceGetDefaultMemPool)(void** made, int) {
    ENTER();
    *made = &memory_pool;
    return SUCCESS;
}
ENTRY(cuDeviceGetMemPool)(void** made, int device) { return cuDeviceGetDefaultMemPool(made, device); }
ENTRY(cuMemPoolTrimTo)(void*, size_t) { return SUCCESS; }

// CUmemPool_attribute's numbers.
enum { RELEASE_THRESHOLD = 4, RESERVED = 5, RESERVED_HIGH = 6, USED = 7, USED_HIGH = 8 };
static uint64_t release_threshold = 0;

ENTRY(cuMemPoolSetAttribute)(void*, int attribute, void* value) {
    ENTER();
    if (attribute == RELEASE_THRESHOLD) release_threshold = *static_cast<uint64_t*>(value);
    if (attribute == RESERVED_HIGH || attribute == USED_HIGH) device_allocated_reset_high();
    return SUCCESS;
}
ENTRY(cuMemPoolGetAttribute)(void*, int attribute, void* value) {
    ENTER();
    uint64_t& v = *static_cast<uint64_t*>(value);
    switch (attribute) {
        case RELEASE_THRESHOLD: v = release_threshold; return SUCCESS;
        case RESERVED: case USED: v = device_allocated(); return SUCCESS;
        case RESERVED_HIGH: case USED_HIGH: v = device_allocated_high(); return SUCCESS;
        default: return fail(INVALID_VALUE, "memory pool attribute %d isn't emulated", attribute);
    }
}
