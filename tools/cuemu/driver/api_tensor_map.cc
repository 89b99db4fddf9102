// Entry points: tensor maps.
#include "api.h"
#include "config.h"
#include "cuemu/tensor_map.h"

using namespace cuemu;

ENTRY(cuTensorMapEncodeTiled)(void* map, int type, uint32_t rank, void* address, const uint64_t* sizes, const uint64_t* strides,
                              const uint32_t* box, const uint32_t* element_strides, int interleave, int swizzle,
                              int l2_promotion, int fill) {
    ENTER();
    if (config.cc < 90) return fail(NOT_SUPPORTED, "cuTensorMapEncodeTiled: compute capability %u has no TMA", config.cc);
    const int error = encode_tensor_map(map, type, rank, address, sizes, strides, box, element_strides, interleave, swizzle,
                                        l2_promotion, fill);
    return error ? fail(error, "cuTensorMapEncodeTiled: arguments that the documentation forbids, or that aren't emulated") : SUCCESS;
}
