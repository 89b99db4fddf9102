#!/usr/bin/env python3
"""Makes a reference bundle: what transformers computes of a checkpoint, for `othink-train parity`.

From an existing checkpoint (the bundle holds `inputs.json`, `expected.safetensors` and the images):
    make_bundle.py --model DIR --examples examples.json --out BUNDLE
From a random-weight model of given sizes (the bundle is a checkpoint folder as well):
    make_bundle.py --random hidden_size=32 vision.depth=1 --tokenizer DIR --examples examples.json --out BUNDLE
Recompute a bundle and compare:
    make_bundle.py --check BUNDLE [--model DIR]

`examples.json` is a list of {"messages": [...], "completion": "..."}; image paths are relative to that file. README.md
beside this file has the keys.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

from oracle import Float64, Processor, Reference, decoded, image_paths, load_model, max_abs, published_name
from tiny_model import ARCHITECTURES, DIALECTS, DTYPES, NAMINGS, draw_weights, parse_options, write_checkpoint, write_json, write_processor

GRPO = {
    "prompt": "example 0",
    "completions": [
        "<answer>3</answer><|im_end|>",
        "<think> There are three circles </think><answer> 5 </answer><|im_end|>",
        "The answer is 42",
        "<answer>12</answer><|im_end|>",
    ],
    "epsilon_low": 0.2,
    "epsilon_high": 0.28,
    "beta": 0.04,
    "loss_type": "grpo",
}
# Kept on request only: large, and all of it follows from other keys.
OFF_BY_DEFAULT = r"logits_all$"
# How far two correct float32 programs may be apart: of the values; of a gradient's largest entry.
CHECK_LIMITS = (
    (r"bf16compute$", 0.15, False),
    # Each of two float32 programs is up to 2.5e-6 from float64.
    (r"(^|\.)grad\.", 5e-6, True),
    (r"grad_norms?$", 1e-5, True),
    (r"(logps|loss|losses|kl_mean|advantages|clip_frac)$", 4e-6, False),
    (r"pixel_values$", 0.0, False),
    (r"", 7e-6, False),
)


def compute(model_dir: Path, inputs: dict, root: Path, wanted, given: dict | None = None, double: bool = True) -> dict:
    """All keys of a bundle for which `wanted(key)` holds, with their `noise.*`."""
    pixels = {k: inputs["processor"][k] for k in ("min_pixels", "max_pixels")} if "processor" in inputs else {}
    processor = Processor(model_dir, **pixels)
    model = load_model(model_dir)
    run = Reference(model, processor, inputs["examples"], root)
    inputs["processor"] = processor.pixels() | {"backend": "PIL bicubic"}
    inputs["grpo_e2e"] = inputs.get("grpo_e2e", GRPO)
    for example, encoded in zip(inputs["examples"], run.encoded):
        example |= {"prompt_text": encoded["prompt_text"], "images": encoded["images"]}
        example |= {"prompt_len": encoded["prompt_len"], "seq_len": len(encoded["ids"])}
    indices = range(len(run.encoded))

    def passes(given: dict | None) -> dict:
        out = {}
        for i in indices:
            out |= run.example(i)
        names = [published_name(name) for name, _ in model.named_parameters()]
        backward = wanted("grad_norm") or any(wanted(f"grad.{name}") for name in names)
        if backward or wanted("loss") or wanted("batch.logps"):
            out |= run.batch(backward)
        if wanted("train.losses"):
            out |= run.train()
        if wanted("grpo_e2e.loss"):
            out |= run.grpo(inputs["grpo_e2e"], given)
        return out

    out = passes(given)
    for i in indices:
        if wanted(f"ex{i}.gen_ids"):
            out |= run.greedy(i)
    out |= decoded([path for e in inputs["examples"] for path in image_paths(e["messages"])], root)
    if double:
        model.double()
        with Float64():
            exact = passes(out if "grpo_e2e.loss" in out else None)
        for key, value in exact.items():
            # Inputs and integers carry no noise.
            given_key = re.search(r"pixel_values$|old_logps$|ref_logps$|rewards$|advantages$|clip_frac$", key)
            if value.is_floating_point() and wanted(key) and not given_key:
                out["noise." + key] = torch.tensor([max_abs(out[key], value)])
    del run, model
    if any(wanted(f"ex{i}.completion_logps_bf16compute") for i in indices):
        low = Reference(load_model(model_dir, torch.bfloat16), processor, inputs["examples"], root)
        for i in indices:
            key = f"ex{i}.completion_logps"
            # Softmax in float32 of bf16 logits, as a trainer would take it.
            e = low.encoded[i]
            with torch.no_grad():
                logits = low.forward(low.inputs(e["ids"][None], torch.ones_like(e["ids"][None]), [e]))[0]
            logps = torch.log_softmax(logits[e["prompt_len"] - 1 : -1].float(), -1)
            out[key + "_bf16compute"] = logps.gather(-1, e["ids"][e["prompt_len"] :, None])[:, 0]
    out = {k: v.float() if v.dtype == torch.float64 else v for k, v in out.items()}
    out = {k: v.int() if v.dtype == torch.int64 else v for k, v in out.items()}
    # Cloned, because `logits` is a view of `logits_all` and a file holds no shared memory.
    return {k: v.detach().contiguous().clone() for k, v in sorted(out.items()) if wanted(k.removeprefix("noise."))}


def finish(inputs: dict, special_ids: dict[str, int]) -> dict:
    """`inputs.json`: the definitions that go with the expected values."""
    count = len(inputs["examples"])
    return {
        "processor": inputs["processor"],
        "examples": inputs["examples"],
        "grpo_e2e": inputs["grpo_e2e"],
        "batch": {
            "padding": "right",
            "pad_token": "<|endoftext|>",
            "loss": f"sum of -logp over completion tokens of the {count} examples / their count",
        },
        "train": {
            "steps": 5,
            "optimizer": "AdamW lr 1e-3 betas .9/.999 eps 1e-8 weight_decay 0.01 on every parameter",
            "clip_grad_norm": 1.0,
        },
        "also_with_same_weights": inputs.get("also_with_same_weights", []),
        "special_ids": special_ids,
    }


def make(args: argparse.Namespace) -> None:
    source = Path(args.examples)
    inputs = {"examples": json.loads(source.read_text()), "also_with_same_weights": args.same_weights}
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for path in dict.fromkeys(p for e in inputs["examples"] for p in image_paths(e["messages"])):
        target = out / path
        if not target.resolve().is_relative_to(out.resolve()):
            raise SystemExit(f"{source}: image path {path!r} must be relative and stay beside the file")
        if target.resolve() != (source.parent / path).resolve():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.parent / path, target)
    if args.model:
        model_dir = Path(args.model)
        if args.min_pixels or args.max_pixels:
            inputs["processor"] = Processor(model_dir, args.min_pixels, args.max_pixels).pixels()
    else:
        model_dir = out
        options = parse_options(args.random, args.family)
        min_pixels, max_pixels = args.min_pixels or 3136, args.max_pixels or 14112
        ids = write_processor(out, Path(args.tokenizer), options, min_pixels, max_pixels, args.published_pixels, args.template)
        weights = draw_weights(options, args.seed, DTYPES[args.round or args.dtype])
        weights = {name: tensor.to(DTYPES[args.dtype]) for name, tensor in weights.items()}
        write_checkpoint(out, options, weights, ids, args.dialect, "published", 1)
    keep, drop = re.compile(args.keep), re.compile(args.drop or "(?!)")
    expected = compute(model_dir, inputs, out, lambda key: bool(keep.search(key)) and not drop.search(key),
                       double=not args.no_noise)
    if not args.model:
        # Other namings and shards hold the same tensors; transformers itself does not read every one of them.
        (out / "model.safetensors").unlink()
        write_checkpoint(out, options, weights, ids, args.dialect, args.naming, args.shards)
    added = Processor(model_dir).tokenizer.get_added_vocab()
    write_json(out / "inputs.json", finish(inputs, dict(sorted(added.items(), key=lambda item: item[1]))))
    note = f"f32 compute, transformers {transformers.__version__}, torch {torch.__version__}, sdpa, {torch.get_num_threads()} thread"
    save_file(expected, out / "expected.safetensors", metadata={"note": note})
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    margins = [v.min().item() for k, v in expected.items() if "gen_margin" in k and not k.startswith("noise.") and v.numel()]
    tokens = [len(v) for k, v in expected.items() if k.endswith("gen_ids")]
    print(f"{out}: {len(expected)} tensors, {size / 1024:.0f} KiB; smallest greedy margin "
          f"{min(margins, default=float('nan')):.2g}, greedy tokens {tokens}")


def check(bundle: Path, model_dir: Path) -> bool:
    """Recomputes every key of a bundle; prints the worst error of each family of keys."""
    expected = load_file(bundle / "expected.safetensors")
    inputs = json.loads((bundle / "inputs.json").read_text())
    texts = [e.get("prompt_text") for e in inputs["examples"]]
    ours = compute(model_dir, inputs, bundle, lambda key: key in expected, given=expected, double=False)
    good = True
    if texts != [e["prompt_text"] for e in inputs["examples"]]:
        good = False
        print("FAIL prompt_text differs")
    worst: dict[str, tuple] = {}
    for key, value in expected.items():
        if key.startswith("noise."):
            continue
        mine = ours.get(key)
        if mine is None or mine.shape != value.shape:
            good = False
            print(f"FAIL {key}: expected {tuple(value.shape)}, made {None if mine is None else tuple(mine.shape)}")
            continue
        limit, relative = 0.0, False
        if value.is_floating_point():
            limit, relative = next((l, r) for pattern, l, r in CHECK_LIMITS if re.search(pattern, key))
        error = max_abs(mine, value)
        if relative and error:
            error /= max(value.abs().max().item(), 1e-30)
        if not error <= limit:
            good = False
            print(f"FAIL {key}: {error:.3g} > {limit:.3g}")
        family = re.sub(r"^ex\d+\.", "ex*.", re.sub(r"grad\..*", "grad.*", re.sub(r"^decoded\..*", "decoded.*", key)))
        if family not in worst or error > worst[family][0]:
            worst[family] = (error, limit, key)
    for family, (error, limit, key) in sorted(worst.items()):
        print(f"{family:36} worst {error:9.3g}  limit {limit:7.2g}  {key if error else ''}")
    print(f"{bundle}: {'ok' if good else 'FAIL'}, {len(expected)} tensors")
    return good


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = p.add_mutually_exclusive_group()
    what.add_argument("--model", help="existing checkpoint folder")
    what.add_argument("--random", nargs="*", metavar="SIZE=VALUE", help="sizes of a random-weight model; the rest are defaults")
    p.add_argument("--check", metavar="BUNDLE", help="recompute this bundle and compare")
    p.add_argument("--examples", help="JSON list of messages and completions")
    p.add_argument("--out", help="folder of the new bundle")
    p.add_argument("--keep", default="", help="write only keys that this regular expression finds")
    p.add_argument("--drop", default=OFF_BY_DEFAULT, help="leave out keys that this regular expression finds (default: %(default)s)")
    p.add_argument("--no_noise", action="store_true", help="no float64 run (it takes twice the memory)")
    p.add_argument("--min_pixels", type=int)
    p.add_argument("--max_pixels", type=int)
    p.add_argument("--threads", type=int, default=1)
    r = p.add_argument_group("with --random")
    r.add_argument("--tokenizer", help="folder to copy tokenizer and chat template from")
    r.add_argument("--family", choices=ARCHITECTURES, default="qwen2_vl")
    r.add_argument("--seed", type=int, default=0)
    r.add_argument("--dtype", choices=DTYPES, default="float32", help="of the stored weights; the computation is float32")
    r.add_argument("--round", choices=DTYPES, help="round the weights to this dtype first, so that files of several dtypes agree")
    r.add_argument("--same_weights", nargs="*", default=[], metavar="BUNDLE", help="names of bundles with these weights in another layout")
    r.add_argument("--dialect", choices=DIALECTS, default="nested", help="of config.json")
    r.add_argument("--naming", choices=NAMINGS, default="published", help="of the tensors")
    r.add_argument("--shards", type=int, default=1)
    r.add_argument("--template", default="jinja", help="jinja, json, tokenizer_config or several joined by +")
    r.add_argument("--published_pixels", action="store_true", help="min_pixels and max_pixels instead of size")
    return p


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.check:
        bundle = Path(args.check)
        return 0 if check(bundle, Path(args.model) if args.model else bundle) else 1
    if not args.examples or not args.out or (args.model is None and (args.random is None or not args.tokenizer)):
        p.error("needs --examples and --out, and --model or --random with --tokenizer")
    make(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
