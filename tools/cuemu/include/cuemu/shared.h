// Dynamic shared memory. Its 32-bit addresses, as inline PTX takes them, are offsets in the block's window. Static
// __shared__ variables have none: what is addressed so must stand in dynamic shared memory.
#pragma once
#include "fiber.h"

namespace cuemu {
CUEMU_API unsigned char* dynamic_shared() __attribute__((const));
CUEMU_API uint32_t shared_address(const void* p, const char* file, int line);
/// The memory at a shared address, checked against the window for `n` bytes. `what` names the instruction.
CUEMU_API char* smem_ptr(uint32_t address, uint32_t n, const char* what, const char* file, int line);
}  // namespace cuemu

static inline unsigned char* dyn_smem() { return cuemu::dynamic_shared(); }
static inline uint32_t smem_u32(const void* p, CUEMU_WHERE) { return cuemu::shared_address(p, CUEMU_HERE); }
