// The multiplication itself, on the host. Every element of D is summed in the order of its algorithm, whatever the
// problem's shape; elements are computed eight at a time, which changes none of them.
//
// A trap, as seen on cuBLAS 12.8 and 13.1: split-K hands out whole stages of K. What is left of K beyond the last whole
// stage is not summed at all, without an error. The heuristic never offers such a split; whoever sets CONFIG_SPLITK_NUM
// by hand gets it.
#include <cmath>
#include <cstring>

#include "lt.h"

namespace lt {
namespace {

typedef float Float8 __attribute__((vector_size(32)));
constexpr int64_t WIDTH = 8;

float load(int type, const char* p, int64_t i) {
    float value;
    if (type == F32) {
        memcpy(&value, p + 4 * i, 4);
        return value;
    }
    uint16_t half;
    memcpy(&half, p + 2 * i, 2);
    const uint32_t bits = uint32_t(half) << 16;
    memcpy(&value, &bits, 4);
    return value;
}

/// To the nearest bf16, ties to even.
uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return std::isnan(value) ? 0x7fff : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void store(int type, char* p, int64_t i, float value) {
    if (type == F32) {
        memcpy(p + 4 * i, &value, 4);
        return;
    }
    const uint16_t half = to_bf16(value);
    memcpy(p + 2 * i, &half, 2);
}

float rounded(int type, float value) {
    char bytes[4];
    store(type, bytes, 0, value);
    return load(type, bytes, 0);
}

/// To the nearest number with TF32's 10 bits of mantissa, ties away from zero.
float to_tf32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (std::isfinite(value)) bits = (bits + 0x1000) & ~0x1fffu;
    memcpy(&value, &bits, 4);
    return value;
}

/// `chains` sums over every `chains`-th product, added as a tree of those half the number apart.
template <int CHAINS>
Float8 interleaved(const Float8* x, const float* y, int64_t count) {
    Float8 sums[CHAINS]{};
    for (int64_t k = 0; k < count; k++) sums[k % CHAINS] += x[k] * y[k];
    for (int apart = CHAINS / 2; apart; apart /= 2)
        for (int i = 0; i < apart; i++) sums[i] += sums[i + apart];
    return sums[0];
}

Float8 sum(Sum order, const Float8* x, const float* y, int64_t count) {
    switch (order) {
        case Sum::Chain: return interleaved<1>(x, y, count);
        case Sum::Pairs: return interleaved<2>(x, y, count);
        case Sum::Four: return interleaved<4>(x, y, count);
        case Sum::Lanes32: return interleaved<32>(x, y, count);
        case Sum::Blocks32: break;
    }
    Float8 total{};
    for (int64_t k = 0; k < count; k += 32) total += interleaved<1>(x + k, y + k, count - k < 32 ? count - k : 32);
    return total;
}

/// The sum of an element's products, split as the algorithm says.
Float8 reduce(const Job& job, const Float8* x, const float* y) {
    const Sum order = capability(job.algorithm.id)->sum;
    const int64_t splits = job.algorithm.splits;
    if (splits <= 1) return sum(order, x, y, job.problem.k);
    const int64_t stage = stage_k(job.algorithm.stages), whole = job.problem.k / stage;
    const int type = job.problem.d.type;
    const bool parts_rounded = job.algorithm.reduction == REDUCTION_OUTPUT_TYPE;
    const bool total_rounded = job.algorithm.reduction != REDUCTION_COMPUTE_TYPE;
    // In place, parts are added to D one at a time, and nothing promises in which order: here it depends on D's size.
    const int64_t first = job.algorithm.reduction == REDUCTION_INPLACE ? (job.problem.m + job.problem.n) % splits : 0;
    Float8 total{};
    for (int64_t i = 0; i < splits; i++) {
        const int64_t part = (first + i) % splits;
        const int64_t begin = whole * part / splits * stage, end = whole * (part + 1) / splits * stage;
        const Float8 sums = sum(order, x + begin, y + begin, end - begin);
        for (int lane = 0; lane < WIDTH; lane++) {
            const float one = parts_rounded ? rounded(type, sums[lane]) : sums[lane];
            total[lane] = total_rounded ? rounded(type, total[lane] + one) : total[lane] + one;
        }
    }
    return total;
}

void compute_batch(const Job& job, const char* a, const char* b, const char* c, char* d) {
    const Problem& p = job.problem;
    const bool tf32 = p.operation.compute == COMPUTE_32F_FAST_TF32;
    const auto from_a = [&](int64_t row, int64_t k) {
        const float value = load(p.a.type, a, p.operation.transpose_a ? p.a.index(k, row) : p.a.index(row, k));
        return tf32 ? to_tf32(value) : value;
    };
    const auto from_b = [&](int64_t k, int64_t column) {
        const float value = load(p.b.type, b, p.operation.transpose_b ? p.b.index(column, k) : p.b.index(k, column));
        return tf32 ? to_tf32(value) : value;
    };
    const auto finish = [&](int64_t row, int64_t column, float total) {
        const int64_t at = p.d.index(row, column);
        float value = job.alpha * total;
        if (job.beta != 0) value += job.beta * load(p.c.type, c, p.c.index(row, column));
        if (p.operation.epilogue == EPILOGUE_BIAS)
            value += load(p.d.type, reinterpret_cast<const char*>(p.operation.bias), row);
        store(p.d.type, d, at, value);
    };
    // The longer side of D goes eight abreast.
    const bool rows_abreast = p.m >= p.n;
    const int64_t abreast = rows_abreast ? p.m : p.n, single = rows_abreast ? p.n : p.m;
    std::vector<float> lines(single * p.k);
    for (int64_t i = 0; i < single; i++)
        for (int64_t k = 0; k < p.k; k++) lines[i * p.k + k] = rows_abreast ? from_b(k, i) : from_a(i, k);
    std::vector<Float8> panel(p.k);
    for (int64_t first = 0; first < abreast; first += WIDTH) {
        const int64_t width = abreast - first < WIDTH ? abreast - first : WIDTH;
        for (int64_t k = 0; k < p.k; k++) {
            panel[k] = Float8{};
            for (int64_t i = 0; i < width; i++)
                panel[k][i] = rows_abreast ? from_a(first + i, k) : from_b(k, first + i);
        }
        for (int64_t other = 0; other < single; other++) {
            const Float8 totals = reduce(job, panel.data(), lines.data() + other * p.k);
            for (int64_t i = 0; i < width; i++)
                rows_abreast ? finish(first + i, other, totals[i]) : finish(other, first + i, totals[i]);
        }
    }
}

}  // namespace

void compute(const Job& job) {
    const Problem& p = job.problem;
    const auto offset = [](const Layout& layout, int64_t batch) {
        return batch * layout.batch_stride * (layout.type == F32 ? 4 : 2);
    };
    for (int32_t i = 0; i < p.d.batch; i++)
        compute_batch(job, job.a + offset(p.a, i), job.b + offset(p.b, i), job.c + offset(p.c, i),
                      job.d + offset(p.d, i));
}

}  // namespace lt
