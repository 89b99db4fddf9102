// The emulated cuBLASLt: names and numbers as in cublasLt.h of CUDA 12 and 13, what the opaque objects hold, and what the
// parts of the library know of each other.
//
// It is built to differ from itself where the real library does, so that a program which holds only by luck fails here:
// its algorithms sum in different orders, the heuristic's first choice depends on the shape, split-K sums in yet other
// orders, in place in one that depends on the size of D, and some algorithms refuse leading dimensions and pointers that
// aren't 16-byte aligned, or few columns.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace lt {

enum Status : int {
    SUCCESS = 0,
    NOT_INITIALIZED = 1,
    INVALID_VALUE = 7,
    ARCH_MISMATCH = 8,
    EXECUTION_FAILED = 13,
    NOT_SUPPORTED = 15,
};
/// cudaDataType_t
enum Type : int { F32 = 0, BF16 = 14 };
/// cublasComputeType_t
enum Compute : int { COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, COMPUTE_32F_FAST_TF32 = 77 };
/// cublasLtEpilogue_t
enum Epilogue : int { EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4 };
/// cublasLtOrder_t
enum Order : int { ORDER_COL = 0, ORDER_ROW = 1 };
/// cublasLtReductionScheme_t: how the parts of split-K are added up. The values are bits of a mask.
enum Reduction : int {
    REDUCTION_NONE = 0,
    REDUCTION_INPLACE = 1,
    REDUCTION_COMPUTE_TYPE = 2,
    REDUCTION_OUTPUT_TYPE = 4
};
constexpr int REDUCTION_MASK = 7;

struct Layout {
    int type;
    int order;
    uint64_t rows, columns;
    int64_t leading;  // elements from one column (ORDER_ROW: row) to the next
    int32_t batch;
    int64_t batch_stride;
    int64_t index(int64_t row, int64_t column) const {
        return order == ORDER_ROW ? row * leading + column : column * leading + row;
    }
};

/// D = alpha * op(A) * op(B) + beta * C + bias; op transposes where it is asked to.
struct Operation {
    int compute, scale_type;
    int transpose_a, transpose_b;
    int epilogue;
    int bias_type;  // -1: that of D
    uint64_t bias;
};

/// Where some algorithms of large products draw their tiles from, if they are given the room.
constexpr size_t COUNTER_BYTES = 4;

struct Preference {
    uint64_t max_workspace;
    uint32_t reductions;  // mask of permitted schemes
    uint32_t alignment[4];
};

/// What the 64 opaque bytes of a cublasLtMatmulAlgo_t hold.
struct Algorithm {
    int32_t id;
    uint32_t tile, stages;
    int32_t splits;  // of K; 0 and 1: none
    uint32_t reduction, swizzle, custom;
    uint16_t inner_shape, cluster_shape;
    int32_t compute, types[4];  // of A, B, C, D
    uint32_t magic;
};
static_assert(sizeof(Algorithm) <= 64);

/// cublasLtMatmulHeuristicResult_t
struct Result {
    union {
        Algorithm algorithm;
        uint64_t opaque[8];
    };
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
};
static_assert(sizeof(Result) == 64 + 8 + 8 + 16);

/// A whole multiplication's shape, once operation and layouts have been found to fit.
struct Problem {
    Operation operation;
    Layout a, b, c, d;
    int64_t m, n, k;
};
/// Whether they fit, and are of a kind that is emulated.
Status make_problem(Problem& out, const Operation& operation, const Layout& a, const Layout& b, const Layout& c,
                    const Layout& d);

/// In which order an algorithm adds up the products of an element.
enum class Sum {
    Chain,     // one chain over k
    Pairs,     // even and odd k apart
    Blocks32,  // a chain per 32 of k, added up one after the other
    Four,      // four chains, k modulo 4, added as a tree
    Lanes32,   // 32 chains, k modulo 32, added as a tree: as a warp does for one row
};

/// What an algorithm is and can do.
struct Capability {
    int id;
    int input;  // Type of A and B
    Sum sum;
    int alignment;  // bytes, of pointers and leading dimensions
    bool needs_cc90, split_k, tf32;
    std::vector<uint32_t> tiles, stages;
};
/// All of them; null where there is none of that id.
const std::vector<Capability>& capabilities();
const Capability* capability(int id);
/// The elements of K that one stage of an algorithm takes: what split-K rounds down to.
int64_t stage_k(uint32_t stages);

/// An algorithm as AlgoInit gives it.
Algorithm make_algorithm(const Capability& capability, int compute, const int types[4]);
/// Whether it can do the problem on this device, with what workspace.
Status check(const Algorithm& algorithm, const Problem& problem, size_t& workspace);
/// The candidates in the heuristic's order.
std::vector<Result> heuristic(const Problem& problem, const Preference& preference);

/// Computes on the host.
struct Job {
    Problem problem;
    Algorithm algorithm;
    float alpha, beta;
    const char *a, *b, *c;
    char* d;
};
void compute(const Job& job);

/// The calling thread's device: compute capability such as 90, 0 without a context.
int device_capability();
/// Puts a job on a stream.
Status enqueue(const Job& job, void* stream);

}  // namespace lt
