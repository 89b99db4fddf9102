// Entry points: modules, functions, launches.
#include <algorithm>
#include <map>
#include <memory>

#include "api.h"
#include "config.h"
#include "launch.h"
#include "stream.h"

namespace cuemu {
namespace {
std::map<void*, std::shared_ptr<Module>> modules;
std::map<void*, std::shared_ptr<Function>> functions;  // each keeps its module alive

std::shared_ptr<Module> find_module(void* handle) {
    auto it = modules.find(handle);
    return it == modules.end() ? nullptr : it->second;
}

std::shared_ptr<Function> find_function(void* handle) {
    auto it = functions.find(handle);
    return it == functions.end() ? nullptr : it->second;
}

int add(std::unique_ptr<Module> made, void** handle) {
    std::shared_ptr<Module> module = std::move(made);
    *handle = module.get();
    modules[*handle] = module;
    for (auto& f : module->functions) functions[f.get()] = {module, f.get()};
    return SUCCESS;
}

int launch(void* function, const Shape& shape, void* stream_handle, void** params, void** extra) {
    OBJECT(f, find_function, function);
    STREAM(stream, stream_handle);
    if (extra) return fail(NOT_SUPPORTED, "launches with packed parameters aren't emulated");
    if (int error = check_shape(*f, shape)) return error;
    auto arguments = std::make_shared<Arguments>(f->kernel, params);
    return enqueue(stream, [=] {
        log_line("kernel %s grid (%u,%u,%u) block (%u,%u,%u) shared %u", f->kernel->name, shape.grid[0], shape.grid[1],
                 shape.grid[2], shape.block[0], shape.block[1], shape.block[2], shape.dynamic_shared);
        return run_launch(*f, shape, *arguments);
    });
}
}  // namespace
}  // namespace cuemu

using namespace cuemu;

ENTRY(cuModuleLoadData)(void** handle, const void* image) {
    ENTER_CONTEXT();
    std::unique_ptr<Module> module;
    if (int error = load_image(image, module)) return error;
    return add(std::move(module), handle);
}
ENTRY(cuModuleLoadDataEx)(void** handle, const void* image, unsigned, int*, void**) {
    return cuModuleLoadData(handle, image);
}
ENTRY(cuModuleLoad)(void** handle, const char* path) {
    ENTER_CONTEXT();
    std::unique_ptr<Module> module;
    if (int error = load_twin_file(path, module)) return error;
    return add(std::move(module), handle);
}
ENTRY(cuModuleUnload)(void* handle) {
    std::lock_guard<std::recursive_mutex> lock(api_mutex());
    OBJECT(module, find_module, handle);
    for (auto& f : module->functions) functions.erase(f.get());
    modules.erase(handle);
    return SUCCESS;
}
ENTRY(cuModuleGetFunction)(void** handle, void* module_handle, const char* name) {
    ENTER_CONTEXT();
    OBJECT(module, find_module, module_handle);
    for (auto& f : module->functions) {
        if (std::string(name) != f->kernel->name) continue;
        *handle = f.get();
        return SUCCESS;
    }
    return fail(NOT_FOUND, "module %s has no kernel %s", module->stem.c_str(), name);
}

// CUfunction_attribute's numbers.
enum { MAX_THREADS_PER_BLOCK = 0, STATIC_SHARED = 1, PTX_VERSION = 5, BINARY_VERSION = 6, MAX_DYNAMIC_SHARED = 8 };

ENTRY(cuFuncGetAttribute)(int* value, int attribute, void* function) {
    ENTER_CONTEXT();
    OBJECT(f, find_function, function);
    switch (attribute) {
        case MAX_THREADS_PER_BLOCK: *value = f->max_threads; break;
        case STATIC_SHARED: *value = f->static_shared; break;
        case PTX_VERSION: case BINARY_VERSION: *value = config.cc; break;
        case MAX_DYNAMIC_SHARED: *value = f->dynamic_limit; break;
        default: *value = 0;  // registers and local memory are the compiler's, which wasn't nvcc
    }
    return SUCCESS;
}
ENTRY(cuFuncSetAttribute)(void* function, int attribute, int value) {
    ENTER_CONTEXT();
    OBJECT(f, find_function, function);
    if (attribute != MAX_DYNAMIC_SHARED) return SUCCESS;
    if (value < 0 || value > capability().shared_optin - f->static_shared) {
        return fail(INVALID_VALUE, "kernel %s: %d bytes of dynamic and %d of static shared memory, a block of compute "
                    "capability %u.%u can have %d", f->kernel->name, value, f->static_shared, config.cc / 10,
                    config.cc % 10, capability().shared_optin);
    }
    f->dynamic_limit = value;
    return SUCCESS;
}
ENTRY(cuFuncSetCacheConfig)(void*, int) { return SUCCESS; }
ENTRY(cuOccupancyMaxActiveBlocksPerMultiprocessor)(int* blocks, void* function, int threads, size_t dynamic_shared) {
    ENTER_CONTEXT();
    OBJECT(f, find_function, function);
    *blocks = occupancy(*f, threads, dynamic_shared);
    return SUCCESS;
}
ENTRY(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags)(int* blocks, void* function, int threads,
                                                            size_t dynamic_shared, unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, dynamic_shared);
}

ENTRY(cuLaunchKernel)(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned dynamic_shared, void* stream, void** params, void** extra) {
    ENTER_CONTEXT();
    return launch(function, {{gx, gy, gz}, {bx, by, bz}, dynamic_shared}, stream, params, extra);
}

/// CUlaunchConfig.
struct LaunchConfig {
    unsigned gx, gy, gz, bx, by, bz, dynamic_shared;
    void* stream;
    void* attributes;
    unsigned nattributes;
};
ENTRY(cuLaunchKernelEx)(const LaunchConfig* c, void* function, void** params, void** extra) {
    ENTER_CONTEXT();
    if (c->nattributes) return fail(NOT_SUPPORTED, "launch attributes (clusters and the like) aren't emulated");
    return launch(function, {{c->gx, c->gy, c->gz}, {c->bx, c->by, c->bz}, c->dynamic_shared}, c->stream, params, extra);
}
