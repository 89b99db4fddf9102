// Emulated bodies of the wrappers that hold inline PTX under nvcc.
#pragma once
#include "shared.h"
#include "warp.h"
