#!/usr/bin/env python3
"""Times torch's own kernels at the shapes of `benches/kernels`: kernels.py [--ours benches.log] [--only NAME]

A line `PEER <op>/<pass> <type> <shape>: <time> us (<what was called>)` for each line `BENCH` of `cargo bench --bench kernels`; with
--ours, the log of those, the two times stand side by side with their ratio. Both are timed alike: between two events in the stream,
the L2 cache overwritten before each run, median of 11. bf16 unless the op is f32 by nature.

What is called is what a trainer on torch would call: fused kernels where torch has them (SDPA by the quickest of cuDNN, flash and
memory-efficient, fused AdamW, F.rms_norm), else its eager formula. The head is the chunked formula of Liger-Kernel's fused linear losses,
logits and their gradient formed once per chunk, in eager torch. Attention over a group repeats the prompt for each completion, as
torch has no shared prefix; the cache of decoding is contiguous, as torch has no pages. Without a GPU the same calls are made once at small
sizes, to see that they work.
"""

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# More than any GPU's L2 cache.
CACHE_BYTES = 256 << 20
RUNS = 11
# Rows of the head whose logits exist at a time: 1.2 GB in f32.
CHUNK = 2048
BACKENDS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
TEMPERATURE = 0.9


class Meter:
    """The device, and the clock."""

    def __init__(self, ours: dict[str, float], only: str):
        self.gpu = torch.cuda.is_available()
        self.device = "cuda" if self.gpu else "cpu"
        self.dtype = torch.bfloat16 if self.gpu else torch.float32
        self.cache = torch.empty(CACHE_BYTES, dtype=torch.uint8, device=self.device) if self.gpu else None
        self.ours, self.only = ours, only

    def size(self, gpu: int, cpu: int) -> int:
        return gpu if self.gpu else cpu

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.randn(shape, device=self.device).to(dtype or self.dtype)

    def seconds(self, work: Callable, prepare: Callable) -> float:
        """Median time of `work` on what `prepare` makes anew for each run."""
        if not self.gpu:
            given, start = prepare(), time.perf_counter()
            work(*given)
            return time.perf_counter() - start
        times = []
        # The first runs choose algorithms and allocate.
        for _ in range(RUNS + 3):
            given = prepare()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.cache.zero_()
            start.record()
            work(*given)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e-3)
        return statistics.median(times[3:])

    def report(self, op: str, passes: str, shape: str, *calls: tuple[str, Callable, Callable]) -> None:
        """The line of the quickest of some calls: what each is, its work, and what prepares a run of it."""
        name = f"{op}/{passes} {'bfloat16' if self.gpu else 'float32'} {shape}"
        if self.only not in name:
            return
        times, reason = {}, ""
        for what, work, prepare in calls:
            try:
                times[self.seconds(work, prepare)] = what
            except RuntimeError as error:
                reason = f"{what}: {str(error).splitlines()[0]}"
        if not times:
            print(f"PEER {name}: not run ({reason})", flush=True)
            return
        peer = min(times)
        print(f"PEER {name}: {peer * 1e6:.2f} us ({times[peer]}){self.beside(name, peer)}", flush=True)

    def function(self, op: str, shape: str, what: str, work: Callable) -> None:
        """One pass, of what has no gradient."""
        with torch.no_grad():
            self.report(op, "fwd", shape, (what, work, tuple))

    def beside(self, name: str, peer: float) -> str:
        """Our time of the same line; of both passes where the peer's is of both."""
        names = [name.replace("fwd+bwd", passes) for passes in ("fwd", "bwd")] if "fwd+bwd" in name else [name]
        if not self.ours:
            return ""
        if any(name not in self.ours for name in names):
            return "; othink has not been timed"
        ours = sum(self.ours[name] for name in names)
        return f"; othink {ours * 1e6:.2f} us, {ours / peer:.2f} of torch's time"

    def op(self, op: str, shape: str, f: Callable, *inputs: torch.Tensor, what: str | dict[str, Callable]) -> None:
        """Both passes of a differentiable function with one result or several; the gradients of all its inputs.

        `what` is called, or by name the ways to call it, each of which takes a function without arguments.
        """
        ways = {what: lambda call: call()} if isinstance(what, str) else what
        leaves = [x.detach().requires_grad_() for x in inputs]
        results = next(iter(ways.values()))(lambda: f(*inputs))
        slopes = [torch.randn_like(y) for y in (results if isinstance(results, tuple) else (results,))]
        del results
        with torch.no_grad():
            self.report(op, "fwd", shape, *((name, lambda way=way: way(lambda: f(*inputs)), tuple) for name, way in ways.items()))

        def backward(*results):
            return torch.autograd.grad(results, leaves, slopes)

        def forward(way):
            results = way(lambda: f(*leaves))
            return results if isinstance(results, tuple) else (results,)

        self.report(op, "bwd", shape, *((name, backward, lambda way=way: forward(way)) for name, way in ways.items()))


def linear(m: Meter) -> None:
    shapes = ((8192, 1536, 1536), (8192, 1536, 256), (8192, 1536, 8960), (8192, 8960, 1536), (8192, 1280, 5120), (512, 1536, 151_936))
    for tokens, inner, out in shapes:
        rows, inner, out = m.size(tokens, 64), m.size(inner, inner // 12), m.size(out, out // 12)
        m.op("linear", f"{rows}x{out}x{inner}", F.linear, m.normal(rows, inner), m.normal(out, inner), m.normal(out), what="F.linear")


def patch_embed(m: Meter) -> None:
    patches, side, channels = m.size(8192, 64), m.size(14, 4), m.size(1280, 64)
    width = 3 * 2 * side * side
    x = m.normal(patches, width)
    m.op("patch_embed", f"{patches}x{channels}x{width}", lambda w: F.linear(x, w), m.normal(channels, width),
         what="F.linear of floats, which othink makes of bytes")


def norms(m: Meter) -> None:
    rows, text, vision = m.size(8192, 64), m.size(1536, 256), m.size(1280, 256)

    def rms(x, w):
        return F.rms_norm(x, (text,), w, 1e-6)

    def layer(x, w, b):
        return F.layer_norm(x, (vision,), w, b, 1e-6)

    def add_rms(x, r, w):
        h = x + r
        return h, rms(h, w)

    def add_layer(x, r, w, b):
        h = x + r
        return h, layer(h, w, b)

    shape, x, r, w = f"{rows}x{text}", m.normal(rows, text), m.normal(rows, text), m.normal(text)
    m.op("rms_norm", shape, rms, x, w, what="F.rms_norm")
    m.op("add_rms_norm", shape, add_rms, x, r, w, what="sum, F.rms_norm")
    shape, x, r = f"{rows}x{vision}", m.normal(rows, vision), m.normal(rows, vision)
    w, b = m.normal(vision), m.normal(vision)
    m.op("layer_norm", shape, layer, x, w, b, what="F.layer_norm")
    m.op("add_layer_norm", shape, add_layer, x, r, w, b, what="sum, F.layer_norm")


def rope(m: Meter) -> None:
    rows, heads = m.size(8192, 64), m.size(12, 2)
    cos, sin = m.normal(rows, 1, 128), m.normal(rows, 1, 128)

    def rotate(x):
        return x * cos + torch.cat((-x[..., 64:], x[..., :64]), -1) * sin

    m.op("rope", f"{rows}x{heads}x128", rotate, m.normal(rows, heads, 128), what="transformers' formula")


def attention(m: Meter) -> None:
    rows = m.size(8192, 128)
    text, vision = (m.size(12, 2), m.size(2, 1), m.size(128, 64)), (m.size(16, 2), m.size(16, 2), 80)
    prompt, completion = m.size(1024, 32), m.size(512, 16)
    count = (rows - prompt) // completion
    for what, heads, causal, segments, first, batch, length in (
        ("causal", text, True, 1, rows, 1, rows),
        ("causal", text, True, rows // m.size(1024, 32), m.size(1024, 32), rows // m.size(1024, 32), m.size(1024, 32)),
        ("group", text, True, 1 + count, prompt, count, prompt + completion),
        ("images", vision, False, rows // m.size(4096, 64), m.size(4096, 64), rows // m.size(4096, 64), m.size(4096, 64)),
        ("windows", vision, False, rows // 64, 64, rows // 64, 64),
    ):
        query, key, dim = heads
        tensors = [m.normal(batch, length, n, dim).transpose(1, 2) for n in (query, key, key)]
        label, repeated = f"{what} {segments}x{first} {query}:{key}x{dim}", " with the prompt repeated" if what == "group" else ""

        def run(q, k, v, causal=causal, gqa=query != key):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa)

        m.op("attention", label, run, *tensors, what=sdpa(m, repeated))
    for batch in (64, 256) if m.gpu else ():
        q, k, v = m.normal(batch, 12, 1, 128), m.normal(batch, 2, 576, 128), m.normal(batch, 2, 576, 128)

        def step(q=q, k=k, v=v):
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

        ways = sdpa(m, " over contiguous keys, prompts repeated").items()
        with torch.no_grad():
            m.report("attention_decode", "fwd", f"{batch} sequences, 320 + 256 keys",
                     *((what, lambda way=way: way(step), tuple) for what, way in ways))


def sdpa(m: Meter, note: str) -> dict[str, Callable]:
    """The ways to call SDPA: by one of its backends."""

    def by(backend: SDPBackend) -> Callable:
        def way(call: Callable):
            with sdpa_kernel(backend):
                return call()

        return way

    return {f"SDPA by {backend.name}{note}": by(backend) for backend in (BACKENDS if m.gpu else (SDPBackend.MATH,))}


def activations(m: Meter) -> None:
    rows, text, vision = m.size(8192, 64), m.size(8960, 512), m.size(5120, 512)
    m.op("swiglu", f"{rows}x{text}", lambda g, u: F.silu(g) * u, m.normal(rows, text), m.normal(rows, text), what="F.silu, product")
    m.op("quick_gelu", f"{rows}x{vision}", lambda x: x * torch.sigmoid(1.702 * x), m.normal(rows, vision), what="x sigmoid(1.702 x)")
    m.op("gelu", f"{rows // 4}x{vision}", F.gelu, m.normal(rows // 4, vision), what="F.gelu")


def embedding(m: Meter) -> None:
    rows, vocab, width = m.size(8192, 64), m.size(151_936, 512), m.size(1536, 256)
    tokens = torch.arange(rows, device=m.device) * 7919 % vocab
    m.op("embedding", f"{rows}x{width} of {vocab}", lambda w: F.embedding(tokens, w), m.normal(vocab, width), what="F.embedding")


def elementwise(m: Meter) -> None:
    rows, width = m.size(8192, 64), m.size(1536, 256)
    x, y = m.normal(rows, width), m.normal(rows, width)
    m.function("add", f"{rows}x{width}", "sum", lambda: x + y)
    total = width + 2 * width // 6
    m.op("columns", f"{rows}x{width} of {total}", lambda x: x[:, :width].contiguous(), m.normal(rows, total), what="contiguous")
    wide, narrow = x.float(), x.bfloat16()
    m.function("cast_to_bf16", f"{rows}x{width}", "bfloat16()", lambda: wide.bfloat16())
    m.function("cast_to_f32", f"{rows}x{width}", "float()", lambda: narrow.float())


def adamw(m: Meter) -> None:
    matrices, length = m.size(28, 4), m.size(8960 * 1024, 1 << 16)
    params = [m.normal(length, dtype=torch.float32).requires_grad_() for _ in range(matrices)]
    for parameter in params:
        parameter.grad = m.normal(length, dtype=torch.float32)
    copies = [parameter.detach().to(m.dtype) for parameter in params]
    optimiser = torch.optim.AdamW(params, lr=1e-6, weight_decay=0.01, fused=True)
    sums = torch.zeros_like(params[0])
    if m.gpu:
        m.function("accumulate_gradient", f"{length} numbers", "add_", lambda: sums.add_(params[0].grad))

    def step():
        torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
        optimiser.step()
        if m.gpu:
            torch._foreach_copy_(copies, [parameter.detach() for parameter in params])

    m.function("adamw", f"{matrices * length} parameters", "clip_grad_norm_, fused AdamW, bf16 copy", step)


def group_advantage(m: Meter) -> None:
    rewards = (torch.arange(512, device=m.device) % 5).double().view(64, 8)
    m.function("group_advantage", "64x8", "mean, std",
               lambda: (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4))


def head(m: Meter) -> None:
    """Log-probability and entropy of each row's token, and with a reference the exact KL."""
    rows, width, vocab = m.size(8192, 64), m.size(1536, 256), m.size(151_936, 512)
    hidden, reference_hidden = m.normal(rows, width), m.normal(rows, width)
    weight, reference_weight = m.normal(vocab, width), m.normal(vocab, width)
    tokens = torch.arange(rows, device=m.device) * 7919 % vocab
    dy = m.normal(rows, 3, dtype=torch.float32)

    def log_probs(h, w):
        return (F.linear(h, w).float() / TEMPERATURE).log_softmax(-1)

    def scores(first: int, kl: bool):
        chunk = slice(first, first + CHUNK)
        logp = log_probs(hidden[chunk], weight)
        p = logp.exp()
        entropy = -(p * logp).sum(-1)
        of_token = logp.gather(-1, tokens[chunk, None])[:, 0]
        if not kl:
            return chunk, logp, p, entropy, of_token, None, None
        difference = logp - log_probs(reference_hidden[chunk], reference_weight)
        return chunk, logp, p, entropy, of_token, difference, (p * difference).sum(-1)

    def forward(kl: bool):
        for first in range(0, rows, CHUNK):
            scores(first, kl)

    def both(kl: bool):
        dh, dw = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        for first in range(0, rows, CHUNK):
            chunk, logp, p, entropy, _, difference, of_kl = scores(first, kl)
            a, b, c = dy[chunk, :, None].unbind(1)
            dz = p * (-a - b * (logp + entropy[:, None]) + (c * (difference - of_kl[:, None]) if kl else 0))
            dz.scatter_add_(-1, tokens[chunk, None], a)
            dz = (dz / TEMPERATURE).to(m.dtype)
            dh[chunk] = dz @ weight
            dw += dz.T @ hidden[chunk]
        return dh, dw

    with torch.no_grad():
        for name, kl in (("log_softmax", False), ("log_softmax_kl", True)):
            shape = f"{rows}x{vocab}x{width}"
            m.report(name, "fwd", shape, ("chunks", lambda kl=kl: forward(kl), tuple))
            m.report(name, "fwd+bwd", shape, ("chunks, Liger's formula", lambda kl=kl: both(kl), tuple))
        z = m.normal(m.size(256, 8), vocab, dtype=torch.float32)
        chosen = torch.arange(len(z), device=m.device)[:, None] * 7919 % vocab
        m.function("sampled_log_probs", f"{len(z)}x{vocab}", "log_softmax, gather",
                   lambda: (z / TEMPERATURE).log_softmax(-1).gather(-1, chosen))


def grpo_loss(m: Meter) -> None:
    completions, length = 64, 128
    logps, sampled, reference = (m.normal(completions, length, dtype=torch.float32) for _ in range(3))
    advantages = torch.arange(completions, device=m.device)[:, None] / 32 - 1
    logps.requires_grad_()

    def loss():
        ratio = (logps - sampled).exp()
        kl = (reference - logps).exp() - (reference - logps) - 1
        per_token = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages) + 0.04 * kl
        return torch.autograd.grad(per_token.mean(1).mean(), logps)

    m.report("grpo_loss", "fwd", f"{completions}x{length}", ("eager formula and its gradient", loss, tuple))


def sample(m: Meter) -> None:
    rows, vocab = m.size(64, 4), m.size(151_936, 1 << 14)
    logits = 3 * m.normal(rows, vocab, dtype=torch.float32)
    seen = torch.arange(300, device=m.device).expand(rows, -1)

    def draw(z):
        z[:, -5:] = -torch.inf
        return torch.multinomial(z.softmax(-1), 1)

    def top_p():
        ordered, order = logits.sort(-1)
        out = ordered.softmax(-1).cumsum(-1) <= 0.1
        return draw(logits.masked_fill(out.scatter(-1, order, out), -torch.inf))

    def penalty():
        of_seen = logits.gather(-1, seen)
        return draw(logits.scatter(-1, seen, torch.where(of_seen < 0, of_seen * 1.1, of_seen / 1.1)) / 0.7)

    for name, what, work in (
        ("plain", "softmax, multinomial", lambda: draw(logits.clone())),
        ("top-p 0.9", "sort, cumsum, multinomial", top_p),
        ("top-k 50", "topk, multinomial", lambda: draw(logits.masked_fill(logits < logits.topk(50).values[:, -1:], -torch.inf))),
        ("penalty", "scatter, multinomial", penalty),
        ("greedy", "argmax", lambda: logits.argmax(-1)),
    ):
        m.function("sample", f"{rows}x{vocab} {name}", what, work)


ALL = (linear, patch_embed, norms, rope, attention, activations, embedding, elementwise, adamw, group_advantage, head, grpo_loss, sample)


def times(log: str) -> Iterator[tuple[str, float]]:
    for name, value in re.findall(r"^BENCH (\S+/\S+ \S+ .+?): ([0-9.]+) us", log, re.MULTILINE):
        yield name, float(value) * 1e-6


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ours", help="log of `cargo bench --bench kernels` on the same GPU")
    p.add_argument("--only", default="", help="only lines that hold this text")
    args = p.parse_args()
    m = Meter(dict(times(Path(args.ours).read_text())) if args.ours else {}, args.only)
    name = torch.cuda.get_device_name() if m.gpu else "CPU, small sizes once: these times mean nothing"
    print(f"PEER torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {name}")
    for bench in ALL:
        try:
            bench(m)
        except RuntimeError as error:
            print(f"PEER {bench.__name__}: not run ({str(error).splitlines()[0]})", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
