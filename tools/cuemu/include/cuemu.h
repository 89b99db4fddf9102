// The CUDA device language for a host compiler: what a .cu file includes instead of CUDA's own headers when nvcc isn't
// the compiler. The library it makes (the "twin" of a kernel module) runs inside the emulated driver, libcuda.so.
#pragma once
#include "cuemu/abi.h"
#include "cuemu/language.h"
#include "cuemu/fiber.h"
#include "cuemu/check.h"
#include "cuemu/builtins.h"
#include "cuemu/barrier.h"
#include "cuemu/warp.h"
#include "cuemu/shared.h"
#include "cuemu/atomics.h"
#include "cuemu/math.h"
#include "cuemu/bf16.h"
#include "cuemu/ptx.h"
