// Asynchronous copies of one thread from global to shared memory (compute capability 8.0 and later). The bytes are there
// after cp_async_wait for the thread that copied, and after a barrier beyond it for the others.
//
// `to`: shared address; `from`: global pointer; both aligned to the size of the copy. Of the size, the first `bytes` are
// read and the rest is filled with zeros: with `bytes` = 0 nothing is read, but `from` must still be aligned.
#pragma once
#include "target.cuh"

// cp.async.cg.shared.global, 16 bytes, past the L1 cache.
ARCH_FN void cp_async16(uint32_t to, const void* from, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// cp.async.ca.shared.global, 8 bytes.
ARCH_FN void cp_async8(uint32_t to, const void* from, int bytes = 8) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// cp.async.ca.shared.global, 4 bytes.
ARCH_FN void cp_async4(uint32_t to, const void* from, int bytes = 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// cp.async.commit_group: closes this thread's group of copies; a group may be empty.
ARCH_FN void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// cp.async.wait_group: waits until at most the N latest of this thread's groups are under way.
template <int N>
ARCH_FN void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
