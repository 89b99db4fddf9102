// The library's entry points.
#include <cstring>
#include <new>

#include "lt.h"

using namespace lt;

#define API(name) extern "C" __attribute__((visibility("default"))) int name

namespace {

/// Reads an attribute that has to have its type's size.
template <class T>
Status read(T& to, const void* buffer, size_t size) {
    if (!buffer || size != sizeof(T)) return INVALID_VALUE;
    memcpy(&to, buffer, sizeof(T));
    return SUCCESS;
}

/// Writes an attribute, and its size where that is asked for; with a buffer of no size, only the latter.
template <class T>
Status write(const T* from, size_t count, void* buffer, size_t size, size_t* written) {
    if (written) *written = count * sizeof(T);
    if (size == 0 && written) return SUCCESS;
    if (!buffer || size < count * sizeof(T)) return INVALID_VALUE;
    memcpy(buffer, from, count * sizeof(T));
    return SUCCESS;
}

bool known_type(int type) { return type == F32 || type == BF16; }
bool known_compute(int compute) {
    return compute == COMPUTE_32F || compute == COMPUTE_32F_PEDANTIC || compute == COMPUTE_32F_FAST_TF32;
}

/// The four matrices' problem, from what an entry point was given.
Status problem_of(Problem& out, const Operation* operation, const Layout* a, const Layout* b, const Layout* c,
                  const Layout* d) {
    if (!operation || !a || !b || !c || !d) return INVALID_VALUE;
    return make_problem(out, *operation, *a, *b, *c, *d);
}

}  // namespace

API(cublasLtCreate)(void** handle) {
    if (!handle) return INVALID_VALUE;
    if (!device_capability()) return NOT_INITIALIZED;
    *handle = new char;
    return SUCCESS;
}
API(cublasLtDestroy)(void* handle) {
    delete static_cast<char*>(handle);
    return SUCCESS;
}
extern "C" __attribute__((visibility("default"))) size_t cublasLtGetVersion() { return 130000; }
extern "C" __attribute__((visibility("default"))) size_t cublasLtGetCudartVersion() { return 13000; }

API(cublasLtMatmulDescCreate)(Operation** made, int compute, int scale_type) {
    if (!made) return INVALID_VALUE;
    if (!known_compute(compute) || scale_type != F32) return NOT_SUPPORTED;
    *made = new Operation{compute, scale_type, 0, 0, EPILOGUE_DEFAULT, -1, 0};
    return SUCCESS;
}
API(cublasLtMatmulDescDestroy)(Operation* operation) {
    delete operation;
    return SUCCESS;
}
API(cublasLtMatmulDescSetAttribute)(Operation* operation, int attribute, const void* buffer, size_t size) {
    if (!operation) return INVALID_VALUE;
    int32_t value = 0;
    // cublasLtMatmulDescAttributes_t
    switch (attribute) {
        case 2:  // pointer mode: alpha and beta on the host
            if (Status bad = read(value, buffer, size)) return bad;
            return value == 0 ? SUCCESS : NOT_SUPPORTED;
        case 3:
        case 4: {  // transposition of A, of B: none, transposed (of a real matrix, conjugated is the same)
            if (Status bad = read(value, buffer, size)) return bad;
            if (value < 0 || value > 2) return INVALID_VALUE;
            (attribute == 3 ? operation->transpose_a : operation->transpose_b) = value != 0;
            return SUCCESS;
        }
        case 7:
            if (Status bad = read(value, buffer, size)) return bad;
            if (value != EPILOGUE_DEFAULT && value != EPILOGUE_BIAS) return NOT_SUPPORTED;
            operation->epilogue = value;
            return SUCCESS;
        case 8: return read(operation->bias, buffer, size);
        case 26:
            if (Status bad = read(value, buffer, size)) return bad;
            if (value != -1 && !known_type(value)) return NOT_SUPPORTED;
            operation->bias_type = value;
            return SUCCESS;
        default: return NOT_SUPPORTED;
    }
}

API(cublasLtMatrixLayoutCreate)(Layout** made, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    if (!made) return INVALID_VALUE;
    if (!known_type(type)) return NOT_SUPPORTED;
    *made = new Layout{type, ORDER_COL, rows, columns, leading, 1, 0};
    return SUCCESS;
}
API(cublasLtMatrixLayoutDestroy)(Layout* layout) {
    delete layout;
    return SUCCESS;
}
API(cublasLtMatrixLayoutSetAttribute)(Layout* layout, int attribute, const void* buffer, size_t size) {
    if (!layout) return INVALID_VALUE;
    int32_t order = 0;
    // cublasLtMatrixLayoutAttribute_t
    switch (attribute) {
        case 1:
            if (Status bad = read(order, buffer, size)) return bad;
            if (order != ORDER_COL && order != ORDER_ROW) return NOT_SUPPORTED;
            layout->order = order;
            return SUCCESS;
        case 2: return read(layout->rows, buffer, size);
        case 3: return read(layout->columns, buffer, size);
        case 4: return read(layout->leading, buffer, size);
        case 5: return read(layout->batch, buffer, size);
        case 6: return read(layout->batch_stride, buffer, size);
        default: return NOT_SUPPORTED;
    }
}

API(cublasLtMatmulPreferenceCreate)(Preference** made) {
    if (!made) return INVALID_VALUE;
    *made = new Preference{0, REDUCTION_MASK, {256, 256, 256, 256}};
    return SUCCESS;
}
API(cublasLtMatmulPreferenceDestroy)(Preference* preference) {
    delete preference;
    return SUCCESS;
}
API(cublasLtMatmulPreferenceSetAttribute)(Preference* preference, int attribute, const void* buffer, size_t size) {
    if (!preference) return INVALID_VALUE;
    // cublasLtMatmulPreferenceAttributes_t
    switch (attribute) {
        case 1: return read(preference->max_workspace, buffer, size);
        case 3: return read(preference->reductions, buffer, size);
        case 5:
        case 6:
        case 7:
        case 8: return read(preference->alignment[attribute - 5], buffer, size);
        default: return NOT_SUPPORTED;
    }
}

API(cublasLtMatmulAlgoGetHeuristic)(void* handle, Operation* operation, Layout* a, Layout* b, Layout* c, Layout* d,
                                    Preference* preference, int wanted, Result* results, int* found) {
    if (!handle) return NOT_INITIALIZED;
    if (!preference || wanted < 1 || !results || !found) return INVALID_VALUE;
    *found = 0;
    Problem problem;
    if (Status bad = problem_of(problem, operation, a, b, c, d)) return bad;
    for (const Result& result : heuristic(problem, *preference))
        if (*found < wanted) results[(*found)++] = result;
    return *found ? SUCCESS : NOT_SUPPORTED;
}

API(cublasLtMatmulAlgoGetIds)(void* handle, int compute, int scale_type, int a, int b, int c, int d, int wanted,
                              int* ids, int* found) {
    if (!handle) return NOT_INITIALIZED;
    if (wanted < 1 || !ids || !found) return INVALID_VALUE;
    *found = 0;
    if (!known_compute(compute) || scale_type != F32 || a != b || c != d || !known_type(d)) return NOT_SUPPORTED;
    for (const Capability& able : capabilities())
        if (able.input == a && *found < wanted) ids[(*found)++] = able.id;
    return *found ? SUCCESS : NOT_SUPPORTED;
}

API(cublasLtMatmulAlgoInit)(void* handle, int compute, int scale_type, int a, int b, int c, int d, int id,
                            Algorithm* algorithm) {
    if (!handle) return NOT_INITIALIZED;
    if (!algorithm) return INVALID_VALUE;
    const Capability* able = capability(id);
    if (!able) return INVALID_VALUE;
    if (!known_compute(compute) || scale_type != F32 || able->input != a || a != b || c != d) return NOT_SUPPORTED;
    const int types[4] = {a, b, c, d};
    memset(static_cast<void*>(algorithm), 0, sizeof Result::opaque);
    *algorithm = make_algorithm(*able, compute, types);
    return SUCCESS;
}

API(cublasLtMatmulAlgoCheck)(void* handle, Operation* operation, Layout* a, Layout* b, Layout* c, Layout* d,
                             const Algorithm* algorithm, Result* result) {
    if (!handle) return NOT_INITIALIZED;
    if (!algorithm || !result) return INVALID_VALUE;
    Problem problem;
    if (Status bad = problem_of(problem, operation, a, b, c, d)) return bad;
    memset(static_cast<void*>(result), 0, sizeof *result);
    result->algorithm = *algorithm;
    const Status status = check(*algorithm, problem, result->workspace);
    result->status = status;
    result->waves = 1;
    return status;
}

API(cublasLtMatmulAlgoCapGetAttribute)(const Algorithm* algorithm, int attribute, void* buffer, size_t size,
                                       size_t* written) {
    const Capability* able = algorithm ? capability(algorithm->id) : nullptr;
    if (!able) return INVALID_VALUE;
    const int32_t split_k = able->split_k, swizzling = 1;
    const uint32_t reductions = able->split_k ? REDUCTION_MASK : 0, alignment = able->alignment;
    // cublasLtMatmulAlgoCapAttributes_t
    switch (attribute) {
        case 0: return write(&split_k, 1, buffer, size, written);
        case 1: return write(&reductions, 1, buffer, size, written);
        case 2: return write(&swizzling, 1, buffer, size, written);
        case 6: return write(able->tiles.data(), able->tiles.size(), buffer, size, written);
        case 13: return write(able->stages.data(), able->stages.size(), buffer, size, written);
        case 16:
        case 17:
        case 18:
        case 19: return write(&alignment, 1, buffer, size, written);
        default: return NOT_SUPPORTED;
    }
}

API(cublasLtMatmulAlgoConfigGetAttribute)(const Algorithm* algorithm, int attribute, void* buffer, size_t size,
                                          size_t* written) {
    if (!algorithm) return INVALID_VALUE;
    // cublasLtMatmulAlgoConfigAttributes_t
    switch (attribute) {
        case 0: return write(&algorithm->id, 1, buffer, size, written);
        case 1: return write(&algorithm->tile, 1, buffer, size, written);
        case 2: return write(&algorithm->splits, 1, buffer, size, written);
        case 3: return write(&algorithm->reduction, 1, buffer, size, written);
        case 4: return write(&algorithm->swizzle, 1, buffer, size, written);
        case 5: return write(&algorithm->custom, 1, buffer, size, written);
        case 6: return write(&algorithm->stages, 1, buffer, size, written);
        case 7: return write(&algorithm->inner_shape, 1, buffer, size, written);
        case 8: return write(&algorithm->cluster_shape, 1, buffer, size, written);
        default: return INVALID_VALUE;
    }
}

API(cublasLtMatmulAlgoConfigSetAttribute)(Algorithm* algorithm, int attribute, const void* buffer, size_t size) {
    if (!algorithm) return INVALID_VALUE;
    switch (attribute) {
        case 1: return read(algorithm->tile, buffer, size);
        case 2: return read(algorithm->splits, buffer, size);
        case 3: return read(algorithm->reduction, buffer, size);
        case 4: return read(algorithm->swizzle, buffer, size);
        case 5: return read(algorithm->custom, buffer, size);
        case 6: return read(algorithm->stages, buffer, size);
        case 7: return read(algorithm->inner_shape, buffer, size);
        case 8: return read(algorithm->cluster_shape, buffer, size);
        default: return INVALID_VALUE;
    }
}

API(cublasLtMatmul)(void* handle, Operation* operation, const float* alpha, const void* a, Layout* a_layout,
                    const void* b, Layout* b_layout, const float* beta, const void* c, Layout* c_layout, void* d,
                    Layout* d_layout, const Algorithm* algorithm, void* workspace, size_t workspace_bytes,
                    void* stream) {
    if (!handle) return NOT_INITIALIZED;
    if (!alpha || !beta || !a || !b || !d || (*beta != 0 && !c)) return INVALID_VALUE;
    Problem problem;
    if (Status bad = problem_of(problem, operation, a_layout, b_layout, c_layout, d_layout)) return bad;
    Job job{problem,
            {},
            *alpha,
            *beta,
            static_cast<const char*>(a),
            static_cast<const char*>(b),
            static_cast<const char*>(c),
            static_cast<char*>(d)};
    if (algorithm) {
        job.algorithm = *algorithm;
    } else {
        const std::vector<Result> found = heuristic(problem, {workspace_bytes, REDUCTION_MASK, {256, 256, 256, 256}});
        if (found.empty()) return NOT_SUPPORTED;
        job.algorithm = found[0].algorithm;
    }
    size_t needed = 0;
    if (Status bad = check(job.algorithm, problem, needed)) return bad;
    // A counter is not missed, room for parts of sums is.
    if (job.algorithm.splits > 1 && (needed > workspace_bytes || (needed && !workspace))) return INVALID_VALUE;
    const uintptr_t alignment = capability(job.algorithm.id)->alignment;
    for (const void* pointer : {a, b, *beta != 0 ? c : d, static_cast<const void*>(d)})
        if (uintptr_t(pointer) % alignment) return NOT_SUPPORTED;
    return enqueue(job, stream);
}
