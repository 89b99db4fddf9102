// What the library asks of the driver: the emulated one, which the process has opened before this library.
#include <dlfcn.h>

#include "lt.h"

namespace lt {
namespace {

/// A function of the driver; null if it isn't there.
template <class F>
F* driver(const char* name) {
    static void* library = [] {
        void* loaded = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
        return loaded ? loaded : dlopen("libcuda.so", RTLD_NOW);
    }();
    return reinterpret_cast<F*>(library ? dlsym(library, name) : nullptr);
}

using GetCurrent = int(void**);
using GetDevice = int(int*);
using GetAttribute = int(int*, int, int);
using IsCapturing = int(void*, int*);
using LaunchHostFunction = int(void*, void (*)(void*), void*);
using Touch = int(const void*, size_t, int);

struct Queued {
    Job job;
    bool captured;  // a graph may run it again
};

/// Tells the driver which of the device's bytes a matrix takes; false: they aren't its.
bool touch(const Layout& layout, const char* from, bool write) {
    static Touch* const tell = driver<Touch>("cuemu_touch");
    const size_t element = layout.type == F32 ? 4 : 2;
    const int64_t lines = layout.order == ORDER_ROW ? layout.rows : layout.columns;
    const int64_t length = layout.order == ORDER_ROW ? layout.columns : layout.rows;
    for (int32_t batch = 0; batch < layout.batch; batch++)
        for (int64_t i = 0; i < lines; i++)
            if (tell(from + (batch * layout.batch_stride + i * layout.leading) * element, length * element, write))
                return false;
    return true;
}

void run(void* argument) {
    auto* queued = static_cast<Queued*>(argument);
    const Job& job = queued->job;
    const Problem& p = job.problem;
    Layout bias = p.d;  // its first column
    bias.columns = 1;
    bool ours = touch(p.a, job.a, false) && touch(p.b, job.b, false) && touch(p.d, job.d, true);
    if (job.beta != 0) ours = ours && touch(p.c, job.c, false);
    if (p.operation.epilogue == EPILOGUE_BIAS)
        ours = ours && touch(bias, reinterpret_cast<const char*>(p.operation.bias), false);
    if (ours) compute(job);
    if (!queued->captured) delete queued;
}

}  // namespace

int device_capability() {
    auto* current = driver<GetCurrent>("cuCtxGetCurrent");
    auto* device = driver<GetDevice>("cuCtxGetDevice");
    auto* attribute = driver<GetAttribute>("cuDeviceGetAttribute");
    if (!current || !device || !attribute) return 0;
    void* context = nullptr;
    int ordinal = 0, major = 0, minor = 0;
    constexpr int MAJOR = 75, MINOR = 76;  // CUdevice_attribute
    if (current(&context) || !context || device(&ordinal)) return 0;
    if (attribute(&major, MAJOR, ordinal) || attribute(&minor, MINOR, ordinal)) return 0;
    return 10 * major + minor;
}

Status enqueue(const Job& job, void* stream) {
    auto* capturing = driver<IsCapturing>("cuStreamIsCapturing");
    auto* launch = driver<LaunchHostFunction>("cuLaunchHostFunc");
    if (!launch) return NOT_INITIALIZED;
    int status = 0;
    if (capturing && capturing(stream, &status)) return EXECUTION_FAILED;
    auto* queued = new Queued{job, status != 0};
    // After an error nobody knows whether it ran, and so was deleted: it is left.
    return launch(stream, run, queued) ? EXECUTION_FAILED : SUCCESS;
}

}  // namespace lt
