// Entry point: tensor maps, which tell TMA the shape of an array in global memory.
#include "api.h"
#include "config.h"
#include "cuemu/tensor_map.h"

using namespace cuemu;

ENTRY(cuTensorMapEncodeTiled)(void* map, int type, unsigned rank, void* address, const uint64_t* sizes,
                              const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides,
                              int interleave, int swizzle, int l2_promotion, int fill_nan) {
    ENTER();
    if (config.cc < 90) return fail(NOT_SUPPORTED, "tensor maps need compute capability 9.0");
    const int error = encode_tensor_map(map, type, rank, address, sizes, strides, box, element_strides, interleave,
                                        swizzle, l2_promotion, fill_nan);
    return error ? fail(error, "cuTensorMapEncodeTiled: the map isn't one that the device takes, or that is emulated")
                 : SUCCESS;
}
