// The one set of headers with inline PTX: a wrapper per instruction, each with its fragment layout. Compiled by nvcc they
// are the instructions; compiled by a host compiler they come from the emulator's headers, under the same names.
//
// Which machine has what: ldmatrix, mma.sync, cp.async and named barriers from compute capability 8.0; mbarriers and TMA
// from 9.0; wgmma on 9.0 only (target sm_90a). A kernel that uses one of these compiles for every target, and traps unless it was
// compiled for sm_90a (what is newer than 9.0 runs the PTX of 8.0): the host launches such a kernel on 9.0 only.
#pragma once
#ifdef __CUDACC__

#include <cuda.h>
#include <cuda_bf16.h>
#include <stdint.h>

#include "arch/async_copy.cuh"
#include "arch/barrier.cuh"
#include "arch/fast_math.cuh"
#include "arch/matrix.cuh"
#include "arch/tma.cuh"
#include "arch/wgmma.cuh"

#else
#include "cuemu.h"
#endif

#include "arch/descriptor.cuh"
