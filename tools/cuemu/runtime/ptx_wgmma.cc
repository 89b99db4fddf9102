// wgmma.mma_async.m64nNk16, bf16 in, f32 out. Each warp computes its own 16 rows, so the four warps of a warpgroup need
// not meet. A product is computed at its issue or at the wait that covers it; until that wait the accumulators hold
// poison, whatever was computed.
//
// D: d[4j + e] of a lane is row 16 * (warp % 4) + g + 8 * (e / 2), column 8j + 2t + e % 2 (g = lane / 4, t = lane % 4).
// Operands with 128-byte swizzle: a tile is 8 lines of 128 bytes. K innermost: a line is 64 of k, tiles of 8 rows stand
// the stride offset apart. N innermost: a line is 64 of n, tiles of 64 n stand the leading offset apart, those of 8 k
// the stride offset.
//
// Order of summation, which is no more than ours: the 16 products of an element as a balanced tree of neighbours, then
// added to the accumulator. It is not that of mma.sync (ptx_matrix.cc).
#include "../include/cuemu/ptx_wgmma.h"

#include "../include/cuemu/tensor_map.h"
#include "ptx_state.h"

namespace cuemu {
namespace {

typedef float Float8 __attribute__((vector_size(32)));

constexpr uint32_t POISON = 0x7fc0dead;  // a NaN

struct Descriptor {
    uint32_t address, leading, stride;
};

Descriptor decode(uint64_t bits, const ProductInFlight& product) {
    const uint64_t known = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 3ull << 62;
    if (bits >> 62 != 1 || bits & ~known) {
        report(LAUNCH_FAILED,
               "wgmma at %s:%d: descriptor %016llx: only the 128-byte swizzle (layout 1) at base offset 0 is emulated",
               base_name(product.file), product.line, (unsigned long long)bits);
        die();
    }
    return {uint32_t(bits & 0x3fff) << 4, uint32_t(bits >> 16 & 0x3fff) << 4, uint32_t(bits >> 32 & 0x3fff) << 4};
}

/// 8 neighbouring elements: they share a 16-byte chunk, which the swizzle moves as a whole.
const uint16_t* chunk(uint32_t address, const ProductInFlight& product) {
    const char* p = smem_ptr(swizzled(address, Swizzle::B128), 16, "wgmma operand", product.file, product.line);
    check_async_proxy_read(p, 16, "wgmma operand", product.file, product.line);
    return reinterpret_cast<const uint16_t*>(p);
}

/// Where row `row` of a K-innermost operand has its elements from k = `k` on.
uint32_t k_innermost(const Descriptor& tile, uint32_t row, uint32_t k) {
    return tile.address + row / 8 * tile.stride + row % 8 * 128 + k * 2;
}

/// Where row k of an N-innermost operand has its elements from `n` on.
uint32_t n_innermost(const Descriptor& tile, uint32_t k, uint32_t n) {
    return tile.address + n / 64 * tile.leading + k / 8 * tile.stride + k % 8 * 128 + n % 64 * 2;
}

struct Operands {
    float a[16][16];
    float b[16][256];
};

void read_operands(Operands& out, const ProductInFlight& product, uint32_t first_row) {
    const Descriptor a = decode(product.a, product), b = decode(product.b, product);
    for (uint32_t row = 0; row < 16; row++)
        for (uint32_t k = 0; k < 16; k += 8) {
            const uint16_t* from = chunk(k_innermost(a, first_row + row, k), product);
            for (int i = 0; i < 8; i++) out.a[row][k + i] = bf16_value(from[i]);
        }
    for (uint32_t i = 0; i < uint32_t(product.n) * 2; i++) {  // chunks
        if (product.b_n_innermost) {
            const uint32_t k = i % 16, n = i / 16 * 8;
            const uint16_t* from = chunk(n_innermost(b, k, n), product);
            for (int e = 0; e < 8; e++) out.b[k][n + e] = bf16_value(from[e]);
        } else {
            const uint32_t n = i / 2, k = i % 2 * 8;
            const uint16_t* from = chunk(k_innermost(b, n, k), product);
            for (int e = 0; e < 8; e++) out.b[k + e][n] = bf16_value(from[e]);
        }
    }
}

void multiply(float (&d)[16][256], const Operands& in, int n) {
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < n; column += 8) {
            Float8 terms[16];
            for (int k = 0; k < 16; k++) {
                Float8 b;
                memcpy(&b, &in.b[k][column], sizeof b);
                terms[k] = in.a[row][k] * b;
            }
            for (int width = 8; width; width /= 2)
                for (int k = 0; k < width; k++) terms[k] = terms[2 * k] + terms[2 * k + 1];
            Float8 sum;
            memcpy(&sum, &d[row][column], sizeof sum);
            sum += terms[0];
            memcpy(&d[row][column], &sum, sizeof sum);
        }
}

/// Computes a product in `values`. The operands are read in the name of the warp's first lane.
void compute(ProductInFlight& product, const Warp* warp) {
    Operands operands;
    float d[16][256];
    const int per_lane = product.n / 2;
    read_operands(operands, product, warp->index % 4 * 16);
    const auto element = [&](int lane, int i) -> float& {
        return d[lane / 4 + 8 * (i / 2 % 2)][8 * (i / 4) + 2 * (lane % 4) + i % 2];
    };
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < per_lane; i++)
            element(lane, i) = product.accumulate ? product.values[lane * per_lane + i] : 0.0f;
    multiply(d, operands, product.n);
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < per_lane; i++) product.values[lane * per_lane + i] = element(lane, i);
    product.computed = true;
}

/// Reads the operands for the sake of the checks: at the issue, where those that another thread may still be writing show,
/// and at the wait, where those show that were overwritten too early; whenever the product is computed.
void check_operands([[maybe_unused]] const ProductInFlight& product, [[maybe_unused]] const Warp* warp) {
#ifdef CUEMU_CHECK
    Operands seen;
    read_operands(seen, product, warp->index % 4 * 16);
#endif
}

WarpAsync& warp_async(const Warp* warp) { return cur->block->async.state->warps[warp->index]; }

struct IssueArg {
    float* d;
    int n;
    bool b_n_innermost, accumulate;
    uint64_t a, b;
    const char* file;
    int line;
};

/// Products into the same accumulators run one after the other: the later one starts from the earlier one's values.
ProductInFlight* latest_into(WarpAsync& async, const float* accumulators) {
    for (size_t i = async.products.size(); i-- > 0;)
        if (async.products[i].accumulators[0] == accumulators) return &async.products[i];
    return nullptr;
}

/// wgmma.fence has to come before the first product, and between any other write to the accumulators and the next one.
void need_fence(const WarpAsync& async, const ProductInFlight& product) {
    bool written = !async.fenced;
    for (const WarpAsync::Result& left : async.since_fence)
        if (left.accumulators == product.accumulators[0] && left.values.size() == product.values.size())
            written |= memcmp(left.values.data(), product.values.data(), left.values.size() * sizeof(float)) != 0;
    if (!written) return;
    report(LAUNCH_FAILED, "wgmma at %s:%d: no wgmma_fence since its accumulators were written", base_name(product.file),
           product.line);
    die();
}

void run_issue(Warp* warp, Rendezvous* met) {
    need_whole_warp(met);
    WarpAsync& async = warp_async(warp);
    const auto& first = *static_cast<IssueArg*>(met->args[0]);
    ProductInFlight product{};
    product.a = first.a;
    product.b = first.b;
    product.n = first.n;
    product.b_n_innermost = first.b_n_innermost;
    product.accumulate = first.accumulate;
    product.group = async.group;
    product.file = first.file;
    product.line = first.line;
    const int per_lane = first.n / 2;
    for (int lane = 0; lane < 32; lane++) {
        const auto& arg = *static_cast<IssueArg*>(met->args[lane]);
        if (arg.a != first.a || arg.b != first.b || arg.accumulate != first.accumulate) {
            report(LAUNCH_FAILED, "wgmma at %s:%d: lane %d gives other descriptors than lane 0", base_name(arg.file),
                   arg.line, lane);
            die();
        }
        product.accumulators[lane] = arg.d;
        product.values.insert(product.values.end(), arg.d, arg.d + per_lane);
    }
    const ProductInFlight* earlier = latest_into(async, product.accumulators[0]);
    const bool ready = !earlier || earlier->computed;
    if (earlier) {
        product.values = earlier->values;
    } else {
        need_fence(async, product);
        for (float* accumulators : product.accumulators)
            for (int i = 0; i < per_lane; i++) memcpy(accumulators + i, &POISON, sizeof POISON);
    }
    ActAs reader(lane_fiber(warp, 0));
    check_operands(product, warp);
    async.products.push_back(std::move(product));
    if (ready && happens_at_once()) compute(async.products.back(), warp);
}

void run_close_group(Warp* warp, Rendezvous* met) {
    need_whole_warp(met);
    warp_async(warp).group++;
}

/// Gives a computed product's values to the next one into the same accumulators, or to the program.
void hand_over(WarpAsync& async, ProductInFlight& product) {
    for (ProductInFlight& later : async.products) {
        if (later.accumulators[0] != product.accumulators[0]) continue;
        if (!later.computed) later.values = std::move(product.values);
        return;
    }
    const int per_lane = product.n / 2;
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < per_lane; i++) {
            float* to = product.accumulators[lane] + i;
            if (memcmp(to, &POISON, sizeof POISON)) {
                report(LAUNCH_FAILED,
                       "wgmma at %s:%d: accumulator %d of lane %d was written before the product was awaited",
                       base_name(product.file), product.line, i, lane);
                die();
            }
            *to = product.values[lane * per_lane + i];
        }
    for (WarpAsync::Result& left : async.since_fence)
        if (left.accumulators == product.accumulators[0]) left.accumulators = nullptr;
    async.since_fence.push_back({product.accumulators[0], std::move(product.values)});
}

struct AwaitArg {
    uint32_t latest;
};

void run_await(Warp* warp, Rendezvous* met) {
    need_whole_warp(met);
    WarpAsync& async = warp_async(warp);
    const uint32_t latest = static_cast<AwaitArg*>(met->args[0])->latest;
    ActAs reader(lane_fiber(warp, 0));
    while (!async.products.empty() && async.products[0].group + latest < async.group) {
        ProductInFlight product = std::move(async.products[0]);
        async.products.erase(async.products.begin());
        check_operands(product, warp);
        if (!product.computed) compute(product, warp);
        hand_over(async, product);
    }
}

void run_open(Warp* warp, Rendezvous* met) {
    need_whole_warp(met);
    warp_async(warp).fenced = true;
    warp_async(warp).since_fence.clear();
}

const Collective OPEN = {run_open, false, "wgmma.fence"};
const Collective ISSUE = {run_issue, false, "wgmma.mma_async"};
const Collective CLOSE_GROUP = {run_close_group, false, "wgmma.commit_group"};
const Collective AWAIT = {run_await, false, "wgmma.wait_group"};

}  // namespace

void FiberAsync::finish(Fiber* fiber) {
    const WarpAsync& async = fiber->block->async.state->warps[fiber->warp->index];
    if (async.products.empty()) return;
    report(LAUNCH_FAILED, "wgmma at %s:%d was never awaited: its thread has returned",
           base_name(async.products[0].file), async.products[0].line);
    die();
}

void wgmma_open(const char* file, int line) {
    need_cc90("wgmma", file, line);
    warp_rendezvous(ALL_LANES, &OPEN, nullptr, file, line);
}

void wgmma_issue(float* d, int n, bool b_n_innermost, uint64_t a, uint64_t b, bool accumulate, const char* file,
                 int line) {
    need_cc90("wgmma", file, line);
    IssueArg arg{d, n, b_n_innermost, accumulate, a, b, file, line};
    warp_rendezvous(ALL_LANES, &ISSUE, &arg, file, line);
}

void wgmma_close_group(const char* file, int line) { warp_rendezvous(ALL_LANES, &CLOSE_GROUP, nullptr, file, line); }

void wgmma_await(uint32_t latest, const char* file, int line) {
    AwaitArg arg{latest};
    warp_rendezvous(ALL_LANES, &AWAIT, &arg, file, line);
}

}  // namespace cuemu
