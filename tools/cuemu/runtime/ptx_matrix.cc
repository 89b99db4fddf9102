// ldmatrix and mma.sync.m16n8k16. Fragment layouts as the PTX ISA gives them; with g = lane / 4 and t = lane % 4:
//   8x8 matrix   row g, columns 2t, 2t+1 (transposed: rows 2t, 2t+1 of column g)
//   A [16, 16]   a[i]: row g + 8 * (i % 2), columns 2t + 8 * (i / 2) and the next
//   B [16, 8]    b[i]: column g, rows 2t + 8 * i and the next
//   D [16, 8]    d[i]: row g + 8 * (i / 2), column 2t + i % 2
//
// Order of summation, which is no more than ours: the 16 products of an element in two halves, each a chain from its
// first product in ascending k; the halves are added to the accumulator one after the other. It is neither the order
// of wgmma (ptx_wgmma.cc) nor that of a plain loop over k, so that nothing which holds on a GPU only by luck passes.
#include "../include/cuemu/ptx_matrix.h"

#include "ptx_common.h"

namespace cuemu {
namespace {

typedef float Float8 __attribute__((vector_size(32)));

struct LdmatrixArg {
    uint32_t* registers;
    uint32_t row;
    int matrices;
    bool transposed;
    const char* file;
    int line;
};

/// The 16 bytes of a matrix row, given by the address that lane `lane` holds.
const uint16_t* matrix_row(const Warp* warp, int lane, uint32_t address, const char* file, int line) {
    ActAs owner(lane_fiber(warp, lane));
    if (address % 16) {
        report(MISALIGNED_ADDRESS, "ldmatrix at %s:%d: row address 0x%x of lane %d is not 16-byte aligned",
               base_name(file), line, address, lane);
        die();
    }
    const char* row = smem_ptr(address, 16, "ldmatrix", file, line);
    check_access(row, 16, Access::Read, "ldmatrix", file, line);
    return reinterpret_cast<const uint16_t*>(row);
}

void run_ldmatrix(Warp* warp, Rendezvous* met) {
    need_whole_warp(met);
    const uint16_t* rows[32];
    const auto* first = static_cast<LdmatrixArg*>(met->args[0]);
    const int matrices = first->matrices;
    const bool transposed = first->transposed;
    for (int lane = 0; lane < 8 * matrices; lane++) {
        const auto* arg = static_cast<LdmatrixArg*>(met->args[lane]);
        rows[lane] = matrix_row(warp, lane, arg->row, arg->file, arg->line);
    }
    for (int lane = 0; lane < 32; lane++) {
        auto* arg = static_cast<LdmatrixArg*>(met->args[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int m = 0; m < matrices; m++) {
            const uint16_t* const* matrix = rows + 8 * m;
            const uint32_t first_element = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
            const uint32_t second_element = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
            arg->registers[m] = first_element | second_element << 16;
        }
    }
}

const Collective LDMATRIX[3][2] = {{{run_ldmatrix, false, "ldmatrix.x1"}, {run_ldmatrix, false, "ldmatrix.x1.trans"}},
                                   {{run_ldmatrix, false, "ldmatrix.x2"}, {run_ldmatrix, false, "ldmatrix.x2.trans"}},
                                   {{run_ldmatrix, false, "ldmatrix.x4"}, {run_ldmatrix, false, "ldmatrix.x4.trans"}}};

/// A fragment of A, as the lanes hold it.
void gather_a(float (&out)[16][16], int lane, const uint32_t* a) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++) {
        float* to = &out[g + 8 * (i % 2)][2 * t + 8 * (i / 2)];
        to[0] = low(a[i]);
        to[1] = high(a[i]);
    }
}

/// D[16, 8] += A * B for the 8 columns of B and D that begin at `column`.
template <int COLUMNS>
void multiply(float (&d)[16][COLUMNS], const float (&a)[16][16], const float (&b)[16][COLUMNS], int column) {
    Float8 rows[16];
    for (int k = 0; k < 16; k++) memcpy(&rows[k], &b[k][column], sizeof rows[k]);
    for (int i = 0; i < 16; i++) {
        Float8 sum;
        memcpy(&sum, &d[i][column], sizeof sum);
        for (int half = 0; half < 16; half += 8) {
            Float8 chain = a[i][half] * rows[half];
            for (int k = half + 1; k < half + 8; k++) chain += a[i][k] * rows[k];
            sum += chain;
        }
        memcpy(&d[i][column], &sum, sizeof sum);
    }
}

struct MmaArg {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
};

void run_mma(Warp*, Rendezvous* met) {
    need_whole_warp(met);
    float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const auto* arg = static_cast<MmaArg*>(met->args[lane]);
        const int g = lane / 4, t = lane % 4;
        gather_a(a, lane, arg->a);
        for (int i = 0; i < 2; i++) {
            b[2 * t + 8 * i][g] = low(arg->b[i]);
            b[2 * t + 8 * i + 1][g] = high(arg->b[i]);
        }
        for (int i = 0; i < 4; i++) d[g + 8 * (i / 2)][2 * t + i % 2] = arg->d[i];
    }
    multiply(d, a, b, 0);
    for (int lane = 0; lane < 32; lane++) {
        const auto* arg = static_cast<MmaArg*>(met->args[lane]);
        for (int i = 0; i < 4; i++) arg->d[i] = d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
    }
}

const Collective MMA = {run_mma, false, "mma.sync.m16n8k16"};

struct TilesArg {
    float (*d)[4];
    const uint32_t *a, *rows;
    int tiles;
    bool transposed;
    const char* file;
    int line;
};

void run_tiles(Warp* warp, Rendezvous* met) {
    need_whole_warp(met);
    float a[16][16], b[16][16], d[16][16];
    TilesArg* args[32];
    for (int lane = 0; lane < 32; lane++) {
        args[lane] = static_cast<TilesArg*>(met->args[lane]);
        gather_a(a, lane, args[lane]->a);
    }
    const bool transposed = args[0]->transposed;
    for (int tile = 0; tile < args[0]->tiles; tile++) {
        // Lanes 8m to 8m+7 give matrix m: m / 2 is the half of the tile's columns, m % 2 that of its k.
        for (int lane = 0; lane < 32; lane++) {
            const TilesArg& arg = *args[lane];
            const uint16_t* row = matrix_row(warp, lane, arg.rows[tile], arg.file, arg.line);
            const int k0 = 8 * (lane / 8 % 2), n0 = 8 * (lane / 16), r = lane % 8;
            for (int i = 0; i < 8; i++) (transposed ? b[k0 + r][n0 + i] : b[k0 + i][n0 + r]) = bf16_value(row[i]);
        }
        // d[2 * tile + h] of a lane: columns 8h and following of the tile.
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 8; i++)
                d[lane / 4 + 8 * (i / 2 % 2)][8 * (i / 4) + 2 * (lane % 4) + i % 2] =
                    args[lane]->d[2 * tile + i / 4][i % 4];
        multiply(d, a, b, 0);
        multiply(d, a, b, 8);
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 8; i++)
                args[lane]->d[2 * tile + i / 4][i % 4] =
                    d[lane / 4 + 8 * (i / 2 % 2)][8 * (i / 4) + 2 * (lane % 4) + i % 2];
    }
}

const Collective TILES[2] = {{run_tiles, false, "ldmatrix.x4 and mma.sync"},
                             {run_tiles, false, "ldmatrix.x4.trans and mma.sync"}};

}  // namespace

void ldmatrix(uint32_t* registers, int matrices, bool transposed, uint32_t row, const char* file, int line) {
    LdmatrixArg arg{registers, row, matrices, transposed, file, line};
    warp_rendezvous(ALL_LANES, &LDMATRIX[matrices / 2][transposed], &arg, file, line);
}

void mma_m16n8k16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, const char* file, int line) {
    MmaArg arg{d, a, {b0, b1}};
    warp_rendezvous(ALL_LANES, &MMA, &arg, file, line);
}

void mma_ldmatrix_tiles(float (*d)[4], const uint32_t* a, const uint32_t* rows, int tiles, bool transposed,
                        const char* file, int line) {
    TilesArg arg{d, a, rows, tiles, transposed, file, line};
    warp_rendezvous(ALL_LANES, &TILES[transposed], &arg, file, line);
}

}  // namespace cuemu
