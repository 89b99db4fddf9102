// The tensor map that TMA reads: written by cuTensorMapEncodeTiled in the driver, read by the kernels' emulation.
#pragma once
#include <cstdint>
#include <cstring>

namespace cuemu {

enum class Swizzle : uint8_t { None, B32, B64, B128 };

// What stands in the 128 opaque bytes of a CUtensorMap. Dimensions innermost first; bytes where not said otherwise.
struct TensorMap {
    static constexpr uint32_t MAGIC = 0x50414d54;
    uint32_t magic;
    uint8_t rank, element_bytes;
    Swizzle swizzle;
    uint64_t base;
    uint64_t strides[4];  // of dimensions 1 and up; dimension 0 is dense
    uint32_t last[5];     // index of the last element: a dimension may have 2^32 elements
    uint16_t box[5];      // elements
};
static_assert(sizeof(TensorMap) <= 128);

// The repeat of a swizzle's pattern in shared memory: the alignment that puts its beginning at the tile's.
inline uint32_t swizzle_repeat(Swizzle swizzle) {
    constexpr uint32_t repeats[] = {128, 256, 512, 1024};
    return repeats[(int)swizzle];
}

// Where the 16-byte chunk at shared address `address` really lies: bits 4 to 6 change by the line's number.
inline uint32_t swizzled(uint32_t address, Swizzle swizzle) {
    constexpr uint32_t masks[] = {0, 0x10, 0x30, 0x70};
    return address ^ (address >> 3 & masks[(int)swizzle]);
}

// Bytes of an element by CUtensorMapDataType, 0 beyond its end.
inline uint32_t tensor_map_element_bytes(int type) {
    constexpr uint8_t bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
    return type >= 0 && type < (int)sizeof bytes ? bytes[type] : 0;
}

// The body of cuTensorMapEncodeTiled, with the rules that the driver's documentation sets. Gives a CUresult: 0, 1 (invalid
// value), or 801 (not supported) for what is legal but not emulated: interleaved layouts, NaN outside the tensor, element
// strides, and boxes whose rows are shorter than the swizzle's span.
inline int encode_tensor_map(void* map, int type, uint32_t rank, void* address, const uint64_t* sizes,
                             const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides,
                             int interleave, int swizzle, int l2_promotion, int fill_nan) {
    constexpr int INVALID_VALUE = 1, NOT_SUPPORTED = 801;
    const uint32_t element_bytes = tensor_map_element_bytes(type);
    const bool is_float = type >= 6;
    if (!map || (uintptr_t)map % 64 || !address || (uintptr_t)address % 16 || !sizes || !box || !element_strides)
        return INVALID_VALUE;
    if (!element_bytes || rank == 0 || rank > 5 || (rank > 1 && !strides)) return INVALID_VALUE;
    if (swizzle < 0 || swizzle > 3 || l2_promotion < 0 || l2_promotion > 3 || interleave < 0 || interleave > 2)
        return INVALID_VALUE;
    if (fill_nan < 0 || fill_nan > 1 || (fill_nan && !is_float)) return INVALID_VALUE;
    if (interleave || fill_nan) return NOT_SUPPORTED;

    TensorMap made{};
    made.magic = TensorMap::MAGIC;
    made.rank = (uint8_t)rank;
    made.element_bytes = (uint8_t)element_bytes;
    made.swizzle = (Swizzle)swizzle;
    made.base = (uint64_t)address;
    for (uint32_t i = 0; i < rank; i++) {
        if (sizes[i] == 0 || sizes[i] > 1ull << 32 || box[i] == 0 || box[i] > 256) return INVALID_VALUE;
        if (element_strides[i] == 0 || element_strides[i] > 8) return INVALID_VALUE;
        if (element_strides[i] != 1) return NOT_SUPPORTED;
        made.last[i] = (uint32_t)(sizes[i] - 1);
        made.box[i] = (uint16_t)box[i];
        if (i == 0) continue;
        if (strides[i - 1] % 16 || strides[i - 1] >= 1ull << 40) return INVALID_VALUE;
        made.strides[i - 1] = strides[i - 1];
    }
    const uint32_t row_bytes = box[0] * element_bytes;
    if (row_bytes % 16) return INVALID_VALUE;
    if (swizzle && row_bytes > 16u << swizzle) return INVALID_VALUE;
    if (swizzle && row_bytes < 16u << swizzle) return NOT_SUPPORTED;
    memset(map, 0, 128);
    memcpy(map, &made, sizeof made);
    return 0;
}

}  // namespace cuemu
