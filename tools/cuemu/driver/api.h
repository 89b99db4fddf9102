// What the entry points share. Signatures follow cuda.h, with integers for enumerations and void* for handles.
#pragma once
#include <mutex>

#include "cuemu/fiber.h"
#include "report.h"

/// Defines an exported entry point.
#define ENTRY(name) extern "C" CUEMU_API int name

namespace cuemu {

/// One call at a time, which also runs whatever kernels it forces. Recursive: a host function may be queued by another
/// emulated library from within a call.
std::recursive_mutex& api_mutex();
/// CUDA_ERROR_NOT_INITIALIZED before cuInit, then the sticky error.
int entry_error();
/// CUDA_ERROR_INVALID_CONTEXT if the calling thread has no current context.
int context_error(const char* call);
extern bool initialised;

}  // namespace cuemu

/// Takes the lock for the rest of the entry point, and returns the sticky error if there is one.
#define ENTER()                                                  \
    std::lock_guard<std::recursive_mutex> lock_(cuemu::api_mutex()); \
    if (int error_ = cuemu::entry_error()) return error_
/// The same for calls that need a current context.
#define ENTER_CONTEXT() \
    ENTER();            \
    if (int error_ = cuemu::context_error(__func__)) return error_
/// Binds `name` to the object of a handle, or returns CUDA_ERROR_INVALID_HANDLE.
#define OBJECT(name, find, handle) \
    const auto name = find(handle); \
    if (!name) return cuemu::fail(cuemu::INVALID_HANDLE, "%s: no such object (destroyed already?)", __func__)
/// Binds `name` to the stream of a handle. A stream knows its context, the default ones are those of the current context.
#define STREAM(name, handle)                                                       \
    if (cuemu::is_default_stream(handle)) {                                        \
        if (int error_ = cuemu::context_error(__func__)) return error_;            \
    }                                                                              \
    OBJECT(name, cuemu::find_stream, handle)
