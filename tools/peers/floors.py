#!/usr/bin/env python3
"""Floors and predicted times of the kernels on an H200 or H100: the tables of benches/RESULTS.md.

    floors.py                                                 prints the table of predictions
    floors.py --check benches/RESULTS.md                      fails where a line of it stands otherwise in the file
    floors.py --chip h100 --ours BENCHES.log --peers PEERS.log    prints what was measured beside it (of tools/gpu-check: results/benches.log, peers.log)

Operations and bytes are those of the ops' own cost functions (src/ops), at the shapes of `benches/kernels`. The floor is the time that they
take at the chip's peaks. A prediction is the sum over a line's kernels of the slower of two: its operations at the share of the peak that this
design can reach, and what it moves at the share of the memory's rate, plus the start and end of a launch. RESULTS.md names the factors.
"""

import argparse
import re
import sys
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

# By their data sheets: memory (HBM3e and HBM3 of the SXM parts), dense bf16 on the tensor cores, f32; multiprocessors, and the clock that the
# peaks imply.
MEMORY = {"h200": 4.8e12, "h100": 3.35e12}
HBM, TENSOR, F32 = MEMORY["h200"], 989e12, 67e12
SMS, CLOCK = 132, 1.83e9
# Shares of these peaks, each with its reason in RESULTS.md.
COPY, LIBRARY, MMA_GEMM, ATTENTION = 0.90, 0.80, 0.50, 0.30
# What one multiprocessor draws from memory, bytes a second: through registers, and through deep asynchronous copies.
SM_LOADS, SM_ASYNC = 60e9, 100e9
# Between two events, for each kernel.
LAUNCH = 2.5e-6
BF16, FLOAT = 2, 4


@dataclass
class Line:
    """One op and pass at one shape."""

    file: str
    op: str
    shape: str
    flops: float
    bytes: float
    # Seconds of each kernel, without its launch.
    kernels: list[float]
    why: str
    peak: float = F32
    # Kernels that are launched once more for each piece.
    launches: int = 0

    @property
    def floor(self) -> float:
        return max(self.flops / self.peak, self.bytes / HBM)

    @property
    def predicted(self) -> float:
        return sum(self.kernels) + LAUNCH * (self.launches or len(self.kernels))

    def cells(self) -> list[str]:
        bound = "operations" if self.flops / self.peak > self.bytes / HBM else "bytes"
        share = f"{100 * self.floor / self.predicted:.0f} %"
        return [self.op, self.shape, digits(self.flops / 1e9), digits(self.bytes / 1e6), bound, digits(self.floor * 1e6),
                digits(self.predicted * 1e6), share, self.why]


@dataclass
class Table:
    lines: list[Line] = field(default_factory=list)

    def add(self, *args, **kwargs) -> None:
        self.lines.append(Line(*args, **kwargs))


def digits(x: float) -> str:
    """Three significant digits, without an exponent."""
    if x == 0:
        return "0"
    if x >= 100:
        size = 10 ** (len(str(int(x))) - 3)
        return str(round(x / size) * size)
    return f"{x:.3g}" if x >= 1 else f"{x:.2g}"


def moved(size: float) -> float:
    """Seconds to read and write so many bytes with all multiprocessors at it."""
    return size / (COPY * HBM)


def few_blocks(size: float, blocks: int, rate: float = SM_LOADS) -> float:
    """The same for fewer blocks than multiprocessors."""
    return max(moved(size), size / (min(blocks, SMS) * rate))


# Tiles of a product that cuBLASLt has, and what each reaches beside the largest: smaller ones read their factors more often.
TILES = {(128, 256): 1.0, (128, 128): 0.9, (128, 64): 0.75, (64, 64): 0.5}
# The number of tokens that the library's algorithm is chosen at, for all numbers of tokens (src/cuda/products.rs).
CANONICAL_TOKENS = 4096


def tiled(m: int, n: int, k: int, size: float, tile: tuple[int, int]) -> float:
    """A product in whole waves of tiles over the multiprocessors, no sum split."""
    blocks = ceil(m / tile[0]) * ceil(n / tile[1])
    waves = 2 * k * tile[0] * tile[1] * SMS * ceil(blocks / SMS)
    return max(waves / (LIBRARY * TILES[tile] * TENSOR), few_blocks(size, blocks, SM_ASYNC))


def library_tile(n: int, k: int) -> tuple[int, int]:
    """The tile of `y = x W^T` and `dx = dy W` with so many columns."""
    return min(TILES, key=lambda tile: tiled(CANONICAL_TOKENS, n, k, 0, tile))


def library(m: int, n: int, k: int, size: float) -> float:
    """`y = x W^T` or `dx = dy W` of m tokens by cuBLASLt."""
    return tiled(m, n, k, size, library_tile(n, k))


def weight_gradient(out: int, inner: int, tokens: int, size: float) -> float:
    """`dW = dy^T x` by cuBLASLt."""
    return tiled(out, inner, tokens, size, min(TILES, key=lambda tile: tiled(out, inner, CANONICAL_TOKENS, 0, tile)))


def library_blocks(m: int, n: int, k: int) -> int:
    tile = library_tile(n, k)
    return ceil(m / tile[0]) * ceil(n / tile[1])


def own(m: int, n: int, k: int, size: float, share: float = MMA_GEMM, tile: tuple[int, int] = (128, 128), resident: int = 2) -> float:
    """A product by kernels/gemm.cuh."""
    slots = SMS * resident
    blocks = ceil(m / tile[0]) * ceil(n / tile[1])
    # A last wave of few blocks has the multiprocessors to itself.
    waves = blocks / slots if blocks > slots else max(blocks / slots, 1 / resident)
    return max(2 * k * tile[0] * tile[1] * slots * waves / (share * TENSOR), moved(size))


def activations(t: Table) -> None:
    for op, width, rows, operands, flops in (("swiglu", 8960, 8192, (3, 5), (6, 12)), ("quick_gelu", 5120, 8192, (2, 3), (5, 10)),
                                             ("gelu", 5120, 2048, (2, 3), (5, 10))):
        n = rows * width
        for i, passes in enumerate(("fwd", "bwd")):
            size = operands[i] * n * BF16
            t.add("activation.cu", f"{op}/{passes}", f"{rows}x{width}", flops[i] * n, size, [moved(size)], "streams, 128 bits a thread")


def adamw(t: Table) -> None:
    n = 28 * 8960 * 1024
    # The last stage of the norm is one block: 256 threads over a sum for each 4096 elements, four loads under way.
    finish = n / 4096 / 256 * 0.15e-6
    t.add("adamw.cu", "adamw/fwd", f"{n} parameters", 18 * n, 34 * n, [moved(4 * n), finish, moved(30 * n)],
          "norm, its one-block end, update: 34 bytes a parameter, gradients read twice")
    n = 8960 * 1024
    t.add("elementwise.cu", "accumulate_gradient/fwd", f"{n} numbers", n, 12 * n, [moved(12 * n)], "streams f32")


def column_sums(t: Table) -> None:
    for rows, columns in ((8192, 1536), (8192, 8960)):
        size = rows * columns * BF16
        t.add("column_sums.cu", "bias gradient", f"{rows}x{columns}", rows * columns, size, [few_blocks(size, ceil(columns / 32))],
              f"{ceil(columns / 32)} blocks of 32 columns, 64 bytes of each row")


def elementwise(t: Table) -> None:
    rows, width, total = 8192, 1536, 2048
    n = rows * width
    for op, flops, size in (("add/fwd", n, 3 * n * BF16), ("cast_to_bf16/fwd", 0, 6 * n), ("cast_to_f32/fwd", 0, 6 * n)):
        t.add("elementwise.cu", op, f"{rows}x{width}", flops, size, [moved(size)], "streams")
    shape = f"{rows}x{width} of {total}"
    t.add("elementwise.cu", "columns/fwd", shape, 0, 2 * n * BF16, [moved(2 * n * BF16)], "a block of 128 threads a row")
    size = rows * (width + total) * BF16
    t.add("elementwise.cu", "columns/bwd", shape, 0, size, [moved(rows * total * BF16), moved(2 * n * BF16)], "zeros, then the columns")


def embedding(t: Table) -> None:
    rows, vocab, width = 8192, 151_936, 1536
    shape = f"{rows}x{width} of {vocab}"
    size = rows * (2 * width * BF16 + 4)
    t.add("embedding.cu", "embedding/fwd", shape, 0, size, [moved(size)], "rows of 3 KiB; without the upload of the ids")
    size = (rows + vocab) * width * BF16 + rows * 4
    written = rows * width * BF16
    t.add("embedding.cu", "embedding/bwd", shape, rows * width, size, [moved(vocab * width * BF16), moved(2 * written)],
          "zeros the table, then writes its rows; without the host's sorting")


# What, segments, first segment, pairs of a row and a key it sees, query and key heads, head dimension, causal, and of the
# gradient of keys: the most query rows that a tile of 64 keys is seen by.
def attention_cases() -> list[tuple]:
    def causal(n: int) -> int:
        return n * (n + 1) // 2

    group = causal(1024) + 14 * (512 * 1024 + causal(512))
    return [
        ("causal", 1, 8192, causal(8192), 12, 2, 128, 8192),
        ("causal", 8, 1024, 8 * causal(1024), 12, 2, 128, 1024),
        ("group", 15, 1024, group, 12, 2, 128, 8192),
        ("images", 2, 4096, 2 * 4096**2, 16, 16, 80, 4096),
        ("windows", 128, 64, 128 * 64**2, 16, 16, 80, 64),
    ]


def attention(t: Table) -> None:
    rows = 8192
    for what, segments, first, pairs, heads, keys, dim, _ in attention_cases():
        shape = f"{what} {segments}x{first} {heads}:{keys}x{dim}"
        flops, size = 4 * pairs * heads * dim, rows * dim * (2 * heads + 2 * keys) * BF16 + rows * heads * FLOAT
        short = {1: 1.0, 8: 0.85, 15: 0.9, 2: 0.9, 128: 0.5}[segments]
        why = {"causal": "mma.sync by 16-row warps", "group": "as causal; prompt read once", "images": "native 80; more exponentials per product",
               "windows": "one tile a block: nothing to overlap"}[what] + ("" if short in (1.0, 0.5) else f"; {100 - short * 100:.0f} % for ends of blocks")
        t.add("flash_attention.cu", "attention/fwd", shape, flops, size, [max(flops / (ATTENTION * short * TENSOR), moved(size) / (short if what == "windows" else 1))],
              why, peak=TENSOR)
    for what, segments, first, pairs, heads, keys, dim, viewers in attention_cases():
        shape = f"{what} {segments}x{first} {heads}:{keys}x{dim}"
        product = 2 * pairs * heads * dim
        size = rows * dim * (4 * heads + 4 * keys) * BF16 + rows * heads * FLOAT
        short = 0.5 if what == "windows" else 0.9
        rate = ATTENTION * short * TENSOR
        # Each kernel reads q, k, v and dO.
        memory = moved(0.75 * size) / short
        of_queries = max(3 * product / rate, memory)
        # A tile of 64 keys sees its query rows 32 at a time, one after the other; alone on a multiprocessor a block reaches 40 % of what
        # shared memory lets through, two blocks 60 % together.
        steps = viewers * heads / keys / 32
        step = 4 * 2 * 64 * 32 * dim / (0.4 * 2048 * CLOCK)
        of_keys = max(4 * product / rate, steps * step, memory)
        bound = {4 * product / rate: "7 products for 5", memory: "two kernels, one tile a block"}
        bound = bound.get(of_keys, f"{steps:.0f} steps of a tile of keys, one after the other")
        t.add("flash_attention_backward.cu", "attention/bwd", shape, 5 * product, size, [of_queries, of_keys], bound, peak=TENSOR)


def gemm(t: Table) -> None:
    for m, k, n in ((8192, 1536, 1536), (8192, 1536, 256), (8192, 1536, 8960), (8192, 8960, 1536), (8192, 1280, 5120), (512, 1536, 151_936)):
        size = (m * k + n * k + m * n + n) * BF16
        t.add("gemm.cu", "linear/fwd", f"{m}x{n}x{k}", 2 * m * n * k + m * n, size, [library(m, n, k, size)], "cuBLASLt", peak=TENSOR)
        operands = (m * k + n * k + m * n) * BF16
        flops, size = 4 * m * n * k + m * n, 2 * operands + (m * n + n) * BF16
        sums = few_blocks(m * n * BF16, ceil(n / 32))
        t.add("gemm.cu", "linear/bwd", f"{m}x{n}x{k}", flops, size, [library(m, k, n, operands), weight_gradient(n, k, m, operands), sums],
              "cuBLASLt twice, column sums", peak=TENSOR)
    m, n, k = 8192, 8960, 1536
    size = (m * k + n * k + m * n) * BF16
    t.add("gemm.cu", "own kernel", f"{m}x{n}x{k}", 2 * m * n * k, size, [own(m, n, k, size)], "mma.sync, where cuBLASLt is missing", peak=TENSOR)
    # A step of decoding 64 sequences, by the algorithm that serves 4096 tokens.
    for n, k in ((1536, 1536), (256, 1536), (8960, 1536), (1536, 8960), (151_936, 1536)):
        size = (64 * k + n * k + 64 * n) * BF16
        t.add("gemm.cu", "linear/fwd", f"64x{n}x{k}", 2 * 64 * n * k, size, [library(64, n, k, size)],
              f"cuBLASLt, blocks: {library_blocks(64, n, k)}; the tile is that of 4096 tokens", peak=TENSOR)


def advantages(t: Table) -> None:
    t.add("group_advantage.cu", "group_advantage/fwd", "64x8", 6 * 512, 12 * 512, [2.0e-6], "one block, f64")
    n = 8192
    t.add("grpo_loss.cu", "grpo_loss/fwd", "64x128", 30 * n, 4 * 8 * n, [3.5e-6], "a block a completion, f64; without the reading of its sums")
    t.add("supervised_loss.cu", "supervised_loss", f"{n} tokens", n, 24 * n, [n / 256 * 0.5e-6], "one block, a token a thread at a time")


def head(t: Table) -> None:
    rows, vocab, width = 8192, 151_936, 1536
    # Parts of 256 MiB of f32 logits, whole runs of 64 rows; 8 of them for the backward products.
    part = (256 << 20) // (4 * vocab) // 64 * 64
    parts = ceil(rows / part)
    pieces = [min(8 * part, rows - first) for first in range(0, rows, 8 * part)]
    logits, weights, shape = part * vocab * FLOAT, vocab * width * BF16, f"{rows}x{vocab}x{width}"
    product = library(part, vocab, width, logits + weights + part * width * BF16)
    # Instructions of a logit: load, scale, maximum, an exact exponential, sums; 128 lanes a clock.
    instructions = ceil(part / SMS) * vocab / 128 / CLOCK
    d_hidden = sum(library(piece, width, vocab, weights + piece * vocab * BF16) for piece in pieces)
    d_weights = sum(weight_gradient(vocab, width, piece, 2 * vocab * width * FLOAT + piece * vocab * BF16) for piece in pieces)
    d_weights += moved(vocab * width * (FLOAT + BF16))
    for op, models in (("log_softmax", 1), ("log_softmax_kl", 2)):
        flops = models * rows * vocab * (2 * width + 4) + 3 * (models - 1) * rows * vocab
        size = models * (rows + vocab) * width * BF16 + 12 * rows
        row = max(moved(models * logits), (25 if models == 1 else 55) * instructions) * 1.15
        t.add("log_softmax_kl.cu", f"{op}/fwd", shape, flops, size, [parts * models * product, parts * row],
              f"{parts} parts of {part} rows; logits written and read once", peak=TENSOR, launches=parts * (models + 1))
        flops, size = flops + 4 * rows * vocab * width, size + (rows + vocab) * width * BF16
        row = max(moved(models * logits + part * vocab * BF16), (25 if models == 1 else 40) * instructions) * 1.15
        t.add("log_softmax_kl.cu", f"{op}/bwd", shape, flops, size, [parts * models * product, parts * row, d_hidden, d_weights],
              f"logits again {1e3 * parts * models * product:.1f} ms, rows {1e3 * parts * row:.1f}, dh {1e3 * d_hidden:.1f}, dW {1e3 * d_weights:.1f}",
              peak=TENSOR, launches=parts * (models + 1) + 2 * len(pieces) + 1)
    rows = 256
    n = rows * vocab
    t.add("log_softmax_kl.cu", "sampled_log_probs/fwd", f"{rows}x{vocab}", 4 * n, 4 * n,
          [max(moved(4 * n), 25 * ceil(rows / SMS) * vocab / 128 / CLOCK) * 1.15], "a block a row; exponentials near the memory's time")


def norms(t: Table) -> None:
    rows = 8192
    for op, width, vectors, flops, residual in (("rms_norm", 1536, (1, 2), (4, 9), 0), ("layer_norm", 1280, (2, 3), (8, 13), 0),
                                                ("add_rms_norm", 1536, (1, 2), (5, 10), 1), ("add_layer_norm", 1280, (2, 3), (9, 14), 1)):
        shape = f"{rows}x{width}"
        size = ((4 if residual else 2) * rows + vectors[0]) * width * BF16
        t.add("norm.cu", f"{op}/fwd", shape, flops[0] * rows * width, size, [moved(size) * 1.1], "a block a row; second look from the L1 cache")
        size = ((4 if residual else 3) * rows + vectors[1]) * width * BF16
        partials = (vectors[1] - 1) * ceil(rows / 16) * width * FLOAT
        t.add("norm.cu", f"{op}/bwd", shape, flops[1] * rows * width, size,
              [(moved(size + partials)) * 1.25, *[few_blocks(partials / (vectors[1] - 1), ceil(width / 32))] * (vectors[1] - 1)],
              "512 blocks of 16 rows, a barrier a row; partial sums")


def decode(t: Table) -> None:
    heads, kv, dim = 12, 2, 128
    for batch in (64, 256):
        keys, pairs = batch // 8 * 320 + batch * 256, batch * 576
        size = (2 * keys * kv + 2 * batch * heads) * dim * BF16
        # A warp walks 9 tiles of 64 keys; three blocks fit a multiprocessor. A tile is 128 mma and as long again for softmax and waiting.
        rounds = ceil(batch * kv / (3 * SMS))
        t.add("paged_attention.cu", "attention_decode/fwd", f"{batch} sequences, 320 + 256 keys", 4 * pairs * heads * dim, size,
              [max(moved(size), rounds * 9 * 1.8e-6)], f"{batch * kv} blocks of one warp, 9 tiles each, one after the other", peak=TENSOR)
        size = 4 * batch * kv * dim * BF16
        t.add("paged_attention.cu", "attention_store/fwd", f"{batch} rows of 256", 0, size, [1.0e-6], "launch")


def patch_embed(t: Table) -> None:
    patches, width, channels = 8192, 1176, 1280
    flops, size = 2 * patches * width * channels, patches * width + (channels * width + patches * channels) * BF16
    shape = f"{patches}x{channels}x{width}"
    t.add("patch_embed.cu", "patch_embed/fwd", shape, flops, size, [own(patches, channels, width, size, 0.35)],
          "mma.sync; A made of bytes through registers; without their upload", peak=TENSOR)
    t.add("patch_embed.cu", "patch_embed/bwd", shape, flops, size, [own(channels, width, patches, size, 0.35)],
          "the same, 100 blocks", peak=TENSOR)


def rope(t: Table) -> None:
    rows, heads, dim = 8192, 12, 128
    n = rows * heads * dim
    for passes in ("fwd", "bwd"):
        size = 2 * n * BF16 + rows * dim * 4
        t.add("rope.cu", f"rope/{passes}", f"{rows}x{heads}x{dim}", 3 * n, size, [moved(size)], "a block a row")
    angles = rows * dim // 2
    size = 2 * angles * FLOAT + 3 * rows * 4
    # Cosine and sine in f64 with their reductions: some 120 operations at half the rate of f32.
    t.add("rope.cu", "rope_angles/fwd", f"{rows}x{dim // 2}", angles, size, [max(moved(size), 120 * angles / (0.5 * F32))], "f64 sine and cosine; once a pass, not a layer")


def sample(t: Table) -> None:
    rows, vocab = 64, 151_936
    n = rows * vocab
    # A row goes to one multiprocessor. The first look comes from memory, others from the L2 cache at about twice the rate.
    look = few_blocks(4 * n, rows, 45e9)
    for name, looks, why in (("plain", 1.6, "64 blocks, a row each, read twice"), ("top-p 0.9", 6, "a copy and about ten looks at it"),
                             ("top-k 50", 5, "a copy and about eight looks at it"), ("penalty", 1.7, "as plain"), ("greedy", 1, "read once")):
        t.add("sample.cu", "sample/fwd", f"{rows}x{vocab} {name}", 4 * n, 4 * n + 4 * rows, [looks * look], why)


def table() -> Table:
    t = Table()
    for part in (activations, adamw, column_sums, elementwise, embedding, attention, gemm, advantages, head, norms, decode, patch_embed,
                 rope, sample):
        part(t)
    return t


def measured(path: str, kind: str) -> dict[tuple[str, str], float]:
    """Microseconds by op and shape, of the lines `BENCH` or `PEER` of a log."""
    found = re.findall(rf"^{kind} (\S+/\S+) \S+ (.+?): ([0-9.]+) us", Path(path).read_text(), re.MULTILINE)
    return {(op, shape): float(time) for op, shape, time in found}


def compared(ours: dict[tuple[str, str], float], peers: dict[tuple[str, str], float]) -> None:
    heads = ("op", "shape", "floor, us", "predicted, us", "measured, us", "of floor", "torch, us", "of torch's time")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for line in table().lines:
        key = line.op, line.shape
        if key not in ours:
            continue
        time, peer = ours[key], peers.get(key)
        cells = [*key, digits(line.floor * 1e6), digits(line.predicted * 1e6), digits(time), f"{100e6 * line.floor / time:.0f} %",
                 digits(peer) if peer else "-", f"{time / peer:.2f}" if peer else "-"]
        print(f"| {' | '.join(cells)} |")
    for (op, shape), peer in peers.items():
        parts = [ours.get((op.replace("fwd+bwd", part), shape)) for part in ("fwd", "bwd")]
        if "fwd+bwd" in op and all(parts):
            print(f"| {op} | {shape} | | | {digits(sum(parts))} | | {digits(peer)} | {sum(parts) / peer:.2f} |")


def main() -> int:
    global HBM
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--check", metavar="RESULTS.md")
    p.add_argument("--chip", choices=MEMORY, default="h200")
    p.add_argument("--ours", metavar="BENCHES.log")
    p.add_argument("--peers", metavar="PEERS.log")
    args = p.parse_args()
    HBM = MEMORY[args.chip]
    if args.ours:
        compared(measured(args.ours, "BENCH"), measured(args.peers, "PEER") if args.peers else {})
        return 0
    lines = [f"| {' | '.join(line.cells())} |" for line in table().lines]
    if not args.check:
        heads = ("op", "shape", "GFLOP", "MB", "bound by", "floor, us", "predicted, us", "of floor", "because")
        print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        print("\n".join(lines))
        return 0
    text = Path(args.check).read_text()
    missing = [line for line in lines if line not in text]
    print("\n".join([*missing, f"{args.check}: {len(lines) - len(missing)} of {len(lines)} lines as computed"]))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
