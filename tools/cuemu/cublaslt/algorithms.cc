// The algorithms, what each can do, and which one the heuristic prefers.
#include <algorithm>

#include "lt.h"

namespace lt {
namespace {

constexpr uint32_t MAGIC = 0x6c745f61;

// cublasLtMatmulTile_t and cublasLtMatmulStages_t
enum : uint32_t { TILE_UNDEFINED = 0, TILE_64x64 = 15, TILE_128x64 = 18, TILE_128x128 = 20, TILE_256x128 = 24 };
enum : uint32_t { STAGES_UNDEFINED = 0, STAGES_32x3 = 9, STAGES_32x4 = 10, STAGES_64x3 = 15, STAGES_64x4 = 16 };

// The real library's ids mean nothing outside it; these are ours.
enum : int { GEMV = 13, SIMT = 1, SIMT_WIDE = 5, TENSOR = 21, WARPGROUP = 66, SIMT_BF16 = 2 };

uint64_t bytes(int type) { return type == BF16 ? 2 : 4; }

bool contains(const std::vector<uint32_t>& all, uint32_t value) {
    return std::find(all.begin(), all.end(), value) != all.end();
}

}  // namespace

const std::vector<Capability>& capabilities() {
    static const std::vector<Capability> all = {
        {GEMV, F32, Sum::Lanes32, 4, false, false, false, {TILE_UNDEFINED}, {STAGES_UNDEFINED}},
        {GEMV + 1, BF16, Sum::Lanes32, 2, false, false, false, {TILE_UNDEFINED}, {STAGES_UNDEFINED}},
        {SIMT, F32, Sum::Chain, 4, false, true, false, {TILE_64x64, TILE_128x64}, {STAGES_32x3}},
        {SIMT_WIDE, F32, Sum::Pairs, 16, false, true, true, {TILE_128x128, TILE_256x128}, {STAGES_32x4}},
        {SIMT_BF16, BF16, Sum::Chain, 2, false, false, false, {TILE_64x64}, {STAGES_32x3}},
        {TENSOR, BF16, Sum::Blocks32, 16, false, true, false, {TILE_64x64, TILE_128x128}, {STAGES_32x4, STAGES_64x3}},
        {WARPGROUP, BF16, Sum::Four, 16, true, true, false, {TILE_128x128, TILE_256x128}, {STAGES_64x4}},
    };
    return all;
}

const Capability* capability(int id) {
    for (const Capability& each : capabilities())
        if (each.id == id) return &each;
    return nullptr;
}

int64_t stage_k(uint32_t stages) { return stages == STAGES_64x3 || stages == STAGES_64x4 ? 64 : 32; }

Algorithm make_algorithm(const Capability& capability, int compute, const int types[4]) {
    Algorithm made{};
    made.id = capability.id;
    made.tile = capability.tiles[0];
    made.stages = capability.stages[0];
    made.splits = 1;
    made.compute = compute;
    std::copy(types, types + 4, made.types);
    made.magic = MAGIC;
    return made;
}

Status make_problem(Problem& out, const Operation& operation, const Layout& a, const Layout& b, const Layout& c,
                    const Layout& d) {
    const int64_t m = operation.transpose_a ? a.columns : a.rows, k = operation.transpose_a ? a.rows : a.columns;
    const int64_t kb = operation.transpose_b ? b.columns : b.rows, n = operation.transpose_b ? b.rows : b.columns;
    const bool outputs_fit =
        d.rows == uint64_t(m) && d.columns == uint64_t(n) && c.rows == d.rows && c.columns == d.columns;
    const bool batches_fit = a.batch == d.batch && b.batch == d.batch && c.batch == d.batch;
    if (k != kb || !outputs_fit || !batches_fit) return INVALID_VALUE;
    if (a.type != b.type || c.type != d.type || c.order != d.order) return NOT_SUPPORTED;
    if (a.type == F32 && d.type != F32) return NOT_SUPPORTED;
    const bool bias = operation.epilogue == EPILOGUE_BIAS;
    // The bias runs along the rows of D; where D's rows are the contiguous ones the real library isn't clear.
    if (bias && (d.order != ORDER_COL || (operation.bias_type >= 0 && operation.bias_type != d.type)))
        return NOT_SUPPORTED;
    if (bias && !operation.bias) return INVALID_VALUE;
    out = {operation, a, b, c, d, m, n, k};
    return SUCCESS;
}

Status check(const Algorithm& algorithm, const Problem& problem, size_t& workspace) {
    workspace = 0;
    const Capability* able = algorithm.magic == MAGIC ? capability(algorithm.id) : nullptr;
    if (!able) return INVALID_VALUE;
    const int types[4] = {problem.a.type, problem.b.type, problem.c.type, problem.d.type};
    if (!std::equal(types, types + 4, algorithm.types) || algorithm.compute != problem.operation.compute)
        return INVALID_VALUE;
    if (able->input != problem.a.type) return NOT_SUPPORTED;
    if (able->needs_cc90 && device_capability() != 90) return ARCH_MISMATCH;
    if (problem.operation.compute == COMPUTE_32F_FAST_TF32 && !able->tf32) return NOT_SUPPORTED;
    if (!contains(able->tiles, algorithm.tile) || !contains(able->stages, algorithm.stages)) return NOT_SUPPORTED;
    for (const Layout* layout : {&problem.a, &problem.b, &problem.c, &problem.d})
        if (layout->leading * bytes(layout->type) % able->alignment) return NOT_SUPPORTED;
    // A caller that has an algorithm for one number of columns doesn't have it for every other.
    if (algorithm.tile == TILE_256x128 && problem.n < 16) return NOT_SUPPORTED;
    if (algorithm.id == WARPGROUP && problem.m * problem.n > 256 * 256) workspace = COUNTER_BYTES;
    if (algorithm.splits <= 1) return algorithm.reduction == REDUCTION_NONE ? SUCCESS : INVALID_VALUE;
    if (!able->split_k) return NOT_SUPPORTED;
    const size_t part = size_t(problem.m) * problem.n * problem.d.batch;
    switch (algorithm.reduction) {
        case REDUCTION_INPLACE: return SUCCESS;
        case REDUCTION_COMPUTE_TYPE: workspace = part * 4 * algorithm.splits; return SUCCESS;
        case REDUCTION_OUTPUT_TYPE: workspace = part * bytes(problem.d.type) * algorithm.splits; return SUCCESS;
        default: return INVALID_VALUE;
    }
}

std::vector<Result> heuristic(const Problem& problem, const Preference& preference) {
    const int types[4] = {problem.a.type, problem.b.type, problem.c.type, problem.d.type};
    const int64_t small = std::min(problem.m, problem.n), area = problem.m * problem.n;
    const bool f32 = problem.a.type == F32;
    // Few rows: a dot product per element. Too few tiles for the machine: K is split. Else by size.
    std::vector<Algorithm> order;
    const auto add = [&](int id, int splits, int reduction, bool last_tile) {
        const Capability& able = *capability(id);
        Algorithm made = make_algorithm(able, problem.operation.compute, types);
        if (last_tile) made.tile = able.tiles.back();
        made.splits = splits;
        made.reduction = reduction;
        order.push_back(made);
    };
    const int gemv = f32 ? GEMV : GEMV + 1, first = f32 ? SIMT : TENSOR, second = f32 ? SIMT_WIDE : WARPGROUP;
    const int64_t tiles = (problem.m + 127) / 128 * ((problem.n + 127) / 128);
    const bool wide = area > 128 * 128;
    if (small <= 4) add(gemv, 1, REDUCTION_NONE, false);
    // The heuristic never offers the trap of compute.cc: a split whose parts leave something of K over.
    if (tiles <= 64 && problem.k >= 1024 && problem.k % 64 == 0) {
        add(first, 4, REDUCTION_COMPUTE_TYPE, false);
        add(first, 4, REDUCTION_INPLACE, false);
        add(first, 2, REDUCTION_OUTPUT_TYPE, false);
    }
    add(wide ? second : first, 1, REDUCTION_NONE, wide);
    if (wide) add(second, 1, REDUCTION_NONE, false);
    add(wide ? first : second, 1, REDUCTION_NONE, false);
    if (!f32) add(SIMT_BF16, 1, REDUCTION_NONE, false);
    if (small > 4) add(gemv, 1, REDUCTION_NONE, false);

    std::vector<Result> found;
    for (const Algorithm& algorithm : order) {
        Result result{};
        result.algorithm = algorithm;
        if (check(algorithm, problem, result.workspace) != SUCCESS) continue;
        // What would take a counter goes without, and doesn't say so here.
        if (result.workspace == COUNTER_BYTES && preference.max_workspace < COUNTER_BYTES) result.workspace = 0;
        if (result.workspace > preference.max_workspace) continue;
        if (algorithm.reduction & ~preference.reductions) continue;
        const uint32_t need = capability(algorithm.id)->alignment;
        if (std::any_of(preference.alignment, preference.alignment + 4, [&](uint32_t given) { return given < need; }))
            continue;
        result.waves = 1;
        found.push_back(result);
    }
    return found;
}

}  // namespace lt
