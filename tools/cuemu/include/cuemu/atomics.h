// Atomics, fences and waiting loops. Blocks run on several threads of the host, so these are atomics of the host.
#pragma once
#include "check.h"
#include "fiber.h"

namespace cuemu {
template <class T, class F>
CUEMU_UNCHECKED static inline T atomic_update(T* p, F&& f, const char* file, int line) {
    check_access(p, sizeof(T), Access::Atomic, "atomic", file, line);
    T old, next;
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    do next = f(old);
    while (!__atomic_compare_exchange(p, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
}  // namespace cuemu

#define CUEMU_ATOMIC(name, expression)                                                                   \
    template <class T>                                                                                   \
    CUEMU_UNCHECKED static inline T name(T* p, std::type_identity_t<T> value, CUEMU_WHERE) {             \
        return cuemu::atomic_update(p, [&](T old) -> T { return expression; }, CUEMU_HERE);              \
    }
CUEMU_ATOMIC(atomicAdd, old + value)
CUEMU_ATOMIC(atomicSub, old - value)
CUEMU_ATOMIC(atomicExch, (void(old), value))
CUEMU_ATOMIC(atomicMin, old < value ? old : value)
CUEMU_ATOMIC(atomicMax, old < value ? value : old)
CUEMU_ATOMIC(atomicOr, old | value)
CUEMU_ATOMIC(atomicAnd, old& value)
#undef CUEMU_ATOMIC
template <class T>
CUEMU_UNCHECKED static inline T atomicCAS(T* p, std::type_identity_t<T> compare, std::type_identity_t<T> value,
                                          CUEMU_WHERE) {
    return cuemu::atomic_update(p, [&](T old) { return old == compare ? value : old; }, CUEMU_HERE);
}

CUEMU_UNCHECKED static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_block() {}
static inline void __nanosleep(unsigned, CUEMU_WHERE) { cuemu::spin_yield(CUEMU_HERE); }
/// Stands in every loop that waits for another thread's write: fibers don't preempt each other.
static inline void spin_hint(CUEMU_WHERE) { cuemu::spin_yield(CUEMU_HERE); }
[[noreturn]] static inline void __trap(CUEMU_WHERE) { cuemu::trap(CUEMU_HERE); }
template <class T>
static inline T __ldg(const T* p) {
    return *p;
}
