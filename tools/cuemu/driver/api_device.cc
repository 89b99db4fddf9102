// Entry points: initialisation, devices, contexts, errors; and the emulator's own.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

#include "api.h"
#include "config.h"
#include "launch.h"
#include "memory.h"
#include "stream.h"

namespace cuemu {

bool initialised = false;
static char context;  // there is one, and its address is its handle
static int retained = 0;
static thread_local void* current = nullptr;
static std::string requested;  // by cuemu_configure

std::recursive_mutex& api_mutex() {
    static std::recursive_mutex mutex;
    return mutex;
}

int entry_error() {
    if (!initialised) return fail(NOT_INITIALIZED, "cuInit has not been called");
    return sticky_error();
}

int context_error(const char* call) {
    if (current) return SUCCESS;
    return fail(INVALID_CONTEXT, "%s: no context is current on this thread (cuCtxSetCurrent makes one so)", call);
}

/// Strings that cuGetErrorString has given stay valid.
static const char* keep(const std::string& text) {
    static std::set<std::string> kept;
    return kept.insert(text).first->c_str();
}

static void reset() {
    reset_streams();
    device_free_all();
    clear_reports();
}

static const struct {
    int code;
    const char *name, *text;
} ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_TIMEOUT, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED",
     "the capture was not initiated in this stream"},
};

}  // namespace cuemu

using namespace cuemu;

/// Sets the keys of `text`, which win over the environment's. Before cuInit; 0 if all is well.
ENTRY(cuemu_configure)(const char* text) {
    std::lock_guard<std::recursive_mutex> lock(api_mutex());
    if (initialised) return fail(INVALID_VALUE, "cuemu_configure comes after cuInit");
    const std::string wrong = configure(text);
    if (!wrong.empty()) {
        fprintf(stderr, "cuemu: %s\n", wrong.c_str());
        return fail(INVALID_VALUE, "%s", wrong.c_str());
    }
    requested += std::string(" ") + text;
    return SUCCESS;
}

/// All reports since the start or the last cuDevicePrimaryCtxReset, one a line.
extern "C" CUEMU_API const char* cuemu_reports() {
    std::lock_guard<std::recursive_mutex> lock(api_mutex());
    return keep(reports());
}

ENTRY(cuInit)(unsigned) {
    std::lock_guard<std::recursive_mutex> lock(api_mutex());
    if (initialised) return SUCCESS;
    if (const char* environment = getenv("CUEMU")) {
        std::string wrong = configure(environment);
        if (wrong.empty()) wrong = configure(requested);
        if (!wrong.empty()) {
            fprintf(stderr, "cuemu: %s\n", wrong.c_str());
            return fail(INVALID_VALUE, "%s", wrong.c_str());
        }
    }
    if (!config.devices) return fail(NO_DEVICE, "devices=0");
    if (!open_log(config.log)) return fail(INVALID_VALUE, "can't write the log %s", config.log.c_str());
    if (!map_arena()) return fail(OUT_OF_MEMORY, "can't reserve the addresses of the device's memory");
    // Twins find the runtime among the global symbols, however the program loaded this library.
    Dl_info self;
    dladdr(&context, &self);
    dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL);
    start_workers();
    initialised = true;
    return SUCCESS;
}

ENTRY(cuDriverGetVersion)(int* version) {
    *version = config.driver;
    return SUCCESS;
}

ENTRY(cuGetErrorName)(int code, const char** name) {
    for (const auto& e : ERRORS) {
        if (e.code != code) continue;
        *name = e.name;
        return SUCCESS;
    }
    *name = nullptr;
    return INVALID_VALUE;
}

ENTRY(cuGetErrorString)(int code, const char** text) {
    std::lock_guard<std::recursive_mutex> lock(api_mutex());
    for (const auto& e : ERRORS) {
        if (e.code != code) continue;
        const std::string why = reason(code);
        *text = why.empty() ? e.text : keep(std::string(e.text) + " [" + why + "]");
        return SUCCESS;
    }
    *text = nullptr;
    return INVALID_VALUE;
}

ENTRY(cuDeviceGet)(int* device, int ordinal) {
    ENTER();
    if (ordinal != 0) return fail(INVALID_DEVICE, "there is device 0 only");
    *device = 0;
    return SUCCESS;
}
ENTRY(cuDeviceGetCount)(int* count) {
    ENTER();
    *count = 1;
    return SUCCESS;
}
ENTRY(cuDeviceGetName)(char* name, int length, int) {
    ENTER();
    snprintf(name, length, "emulated sm_%u", config.cc);
    return SUCCESS;
}
ENTRY(cuDeviceGetUuid_v2)(char* uuid, int) {
    memset(uuid, 0, 16);
    memcpy(uuid, "cuemu", 5);
    return SUCCESS;
}
ENTRY(cuDeviceGetUuid)(char* uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }
ENTRY(cuDeviceTotalMem_v2)(size_t* bytes, int) {
    ENTER();
    *bytes = config.memory;
    return SUCCESS;
}

ENTRY(cuDeviceGetAttribute)(int* value, int attribute, int) {
    ENTER();
    const Capability& c = capability();
    // CUdevice_attribute's numbers. Attributes that aren't listed are absent features: 0.
    switch (attribute) {
        case 1: case 2: case 3: *value = 1024; break;                      // threads of a block; its x and y
        case 4: *value = 64; break;                                        // its z
        case 5: *value = 0x7fffffff; break;                                // blocks of a grid: x
        case 6: case 7: *value = 65535; break;                             // y, z
        case 8: *value = 48 << 10; break;                                  // shared memory of a block
        case 9: *value = 64 << 10; break;                                  // constant memory
        case 10: *value = 32; break;                                       // warp
        case 12: case 82: *value = 64 << 10; break;                        // registers of a block, of a multiprocessor
        case 13: *value = 1755000; break;                                  // clock, kHz
        case 16: *value = c.multiprocessors; break;
        case 36: *value = 1593000; break;                                  // memory clock, kHz
        case 37: *value = 5120; break;                                     // memory bus, bits
        case 38: *value = c.l2_bytes; break;
        case 39: *value = c.threads_multiprocessor; break;
        case 40: *value = 1; break;                                        // asynchronous copy engines
        case 41: *value = 1; break;                                        // unified addressing
        case 75: *value = config.cc / 10; break;
        case 76: *value = config.cc % 10; break;
        case 81: *value = c.shared_multiprocessor; break;
        case 97: *value = c.shared_optin; break;
        case 106: *value = c.blocks_multiprocessor; break;
        case 111: *value = c.shared_reserved(); break;                     // shared memory reserved per block
        case 115: *value = 1; break;                                       // memory pools
        default: *value = 0;
    }
    return SUCCESS;
}

ENTRY(cuDevicePrimaryCtxRetain)(void** made, int) {
    std::lock_guard<std::recursive_mutex> lock(api_mutex());
    if (!initialised) return entry_error();
    retained++;
    *made = &context;
    return SUCCESS;
}
ENTRY(cuDevicePrimaryCtxReset_v2)(int) {
    std::lock_guard<std::recursive_mutex> lock(api_mutex());
    reset();
    return SUCCESS;
}
ENTRY(cuDevicePrimaryCtxRelease_v2)(int) {
    std::lock_guard<std::recursive_mutex> lock(api_mutex());
    if (retained == 0) return fail(INVALID_CONTEXT, "the primary context is released more often than retained");
    if (--retained > 0) return SUCCESS;
    if (!sticky_error()) synchronize_all();
    reset();
    return SUCCESS;
}
ENTRY(cuDevicePrimaryCtxGetState)(int, unsigned* flags, int* active) {
    *flags = 0;
    *active = retained > 0;
    return SUCCESS;
}
ENTRY(cuDevicePrimaryCtxSetFlags_v2)(int, unsigned) { return SUCCESS; }
ENTRY(cuCtxGetCurrent)(void** made) {
    *made = current;
    return SUCCESS;
}
ENTRY(cuCtxSetCurrent)(void* wanted) {
    if (wanted && wanted != &context) return fail(INVALID_CONTEXT, "cuCtxSetCurrent: no such context");
    current = wanted;
    return SUCCESS;
}
ENTRY(cuCtxPushCurrent_v2)(void* wanted) { return cuCtxSetCurrent(wanted); }
ENTRY(cuCtxPopCurrent_v2)(void** made) {
    if (made) *made = current;
    current = nullptr;
    return SUCCESS;
}
ENTRY(cuCtxGetDevice)(int* device) {
    *device = 0;
    return current ? SUCCESS : fail(INVALID_CONTEXT, "no context is current");
}
ENTRY(cuCtxSetFlags)(unsigned) { return SUCCESS; }
ENTRY(cuCtxSynchronize)() {
    ENTER_CONTEXT();
    return synchronize_all();
}
ENTRY(cuCtxGetStreamPriorityRange)(int* least, int* greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = 0;
    return SUCCESS;
}
ENTRY(cuProfilerStart)() { return SUCCESS; }
ENTRY(cuProfilerStop)() { return SUCCESS; }
