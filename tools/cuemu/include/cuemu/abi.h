// What a twin and the driver know of each other: the table that a twin exports as `cuemu_module`.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace cuemu {

// The builder defines it as a hash of these headers: a twin and a driver of different builds must not meet.
#ifndef CUEMU_BUILD
#define CUEMU_BUILD 0
#endif

struct KernelEntry {
    const char* name;
    /// Calls the kernel for the current fiber; `params[i]` points to the i-th argument, as in cuLaunchKernel.
    void (*invoke)(void** params);
    uint32_t nparams;
    const uint32_t* sizes;  // bytes of each parameter
    uint64_t pointers;      // bit i: parameter i is a pointer
};

struct ModuleTable {
    uint64_t build;
    uint32_t check;  // 1: built with the checks
    const char* stem;
    const KernelEntry* kernels;
    uint32_t nkernels;
    /// An address inside the calling thread's copy of the module's static shared memory.
    char* (*static_shared)();
};

/// The signature of a kernel, taken apart.
template <auto F>
struct Signature;
template <class... A, void (*F)(A...)>
struct Signature<F> {
    template <size_t... I>
    static void call(void** params, std::index_sequence<I...>) {
        F(*static_cast<std::remove_cv_t<A>*>(params[I])...);
    }
    static void invoke(void** params) { call(params, std::index_sequence_for<A...>{}); }
    static constexpr uint32_t sizes[sizeof...(A) + 1] = {uint32_t(sizeof(A))..., 0};
    static constexpr uint64_t pointers() {
        uint64_t mask = 0;
        int i = 0;
        ((mask |= uint64_t(std::is_pointer_v<A>) << i++), ...);
        return mask;
    }
    static constexpr KernelEntry entry(const char* name) {
        return {name, &invoke, sizeof...(A), sizes, pointers()};
    }
};

}  // namespace cuemu

#ifdef CUEMU_CHECK
#define CUEMU_CHECKED 1
#else
#define CUEMU_CHECKED 0
#endif

/// Written once at the end of a twin's source (tools/cuemu/cuemu.rs generates it):
/// `CUEMU_MODULE("stem", CUEMU_KERNEL(a), CUEMU_KERNEL(b))`. The anchor has a value, so that the linker puts it before all
/// __shared__ variables, which have none.
#define CUEMU_KERNEL(name) cuemu::Signature<&name>::entry(#name)
#define CUEMU_MODULE(stem, ...)                                                                          \
    static thread_local char cuemu_static_shared_anchor = 1;                                             \
    static const cuemu::KernelEntry cuemu_kernels[] = {__VA_ARGS__};                                      \
    extern "C" {                                                                                         \
    extern const cuemu::ModuleTable cuemu_module __attribute__((visibility("default")));                 \
    }                                                                                                    \
    const cuemu::ModuleTable cuemu_module = {CUEMU_BUILD,   CUEMU_CHECKED,                               \
                                             stem,          cuemu_kernels,                               \
                                             sizeof cuemu_kernels / sizeof cuemu_kernels[0],             \
                                             [] { return &cuemu_static_shared_anchor; }};
