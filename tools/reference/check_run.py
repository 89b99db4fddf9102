#!/usr/bin/env python3
"""Loads checkpoints of a run with transformers and compares log-probs with those of `othink-train score`.

    check_run.py --model RUN/CHECKPOINT --rows scored.jsonl [--model ... --rows ...]

Each row is {"prompt_ids": [...], "completion_ids": [...], "images": [paths], "logps": [...]}: the prompt with its image
tokens expanded, and one log-prob per completion token (float32, temperature 1, full vocabulary). Image paths are
relative to `--images_root`, by default the folder of the JSONL file. Exits 1 when a checkpoint does not load whole or a
log-prob is off by more than `--limit`.

JPEG and lossy WebP decoders differ by a grey level, so rows with such images can exceed the limit: score PNGs.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from oracle import Processor, load_model


def score(model, processor: Processor, row: dict, root: Path) -> torch.Tensor:
    """Log-probs `[completion]` of a row, as transformers computes them."""
    prompt, completion = row["prompt_ids"], row["completion_ids"]
    inputs = {}
    if row.get("images"):
        patches, grids = processor.patches([root / path for path in row["images"]])
        inputs = {"pixel_values": patches.to(model.dtype), "image_grid_thw": grids}
        tokens = int(grids.prod(-1).sum()) // processor.image.merge_size**2
        if prompt.count(processor.image_id) != tokens:
            raise ValueError(f"{prompt.count(processor.image_id)} image tokens in the prompt, the images have {tokens}")
    if len(row["logps"]) != len(completion):
        raise ValueError(f"{len(row['logps'])} log-probs for {len(completion)} completion tokens")
    ids = torch.tensor([prompt + completion])
    # Image tokens that a policy sampled are not images.
    kinds = (ids == processor.image_id).int()
    kinds[:, len(prompt) :] = 0
    positions, _ = model.model.get_rope_index(ids, kinds, inputs.get("image_grid_thw"))
    with torch.no_grad():
        logits = model(input_ids=ids, mm_token_type_ids=kinds, position_ids=positions, use_cache=False, **inputs).logits
    logps = torch.log_softmax(logits[0, len(prompt) - 1 : -1].float(), -1)
    return logps.gather(-1, torch.tensor(completion)[:, None])[:, 0]


def check(folder: Path, rows: Path | None, root: Path | None, limit: float) -> bool:
    """Whether the checkpoint loads whole and agrees with the rows; prints one line."""
    model = load_model(folder)
    count = sum(p.numel() for p in model.parameters())
    if rows is None:
        print(f"{folder}: loads, {count} parameters")
        return True
    processor = Processor(folder)
    worst, where, tokens = 0.0, "", 0
    lines = [line for line in rows.read_text().splitlines() if line.strip()]
    for number, line in enumerate(lines, 1):
        row = json.loads(line)
        try:
            ours = score(model, processor, row, root or rows.parent)
        except (KeyError, ValueError, OSError) as error:
            raise SystemExit(f"{rows}:{number}: {error}") from error
        given = torch.tensor(row["logps"], dtype=torch.float32)
        errors = (ours - given).abs()
        errors[errors.isnan()] = float("inf")
        tokens += len(given)
        if len(given) and errors.max().item() >= worst:
            worst, at = errors.max().item(), int(errors.argmax())
            where = f"line {number} token {at}: {given[at]:.7g} here {ours[at]:.7g}"
    good = tokens > 0 and worst <= limit
    print(f"{folder}: loads, {count} parameters; {len(lines)} rows, {tokens} tokens, max |difference| {worst:.3g} "
          f"(limit {limit:.3g}; {where}): {'ok' if good else 'FAIL'}")
    return good


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", action="append", required=True, type=Path, help="checkpoint folder; repeat for several")
    p.add_argument("--rows", action="append", default=[], type=Path, help="JSONL of the checkpoint in the same place")
    p.add_argument("--images_root", type=Path)
    p.add_argument("--limit", type=float, default=3e-5)
    args = p.parse_args()
    if args.rows and len(args.rows) != len(args.model):
        p.error("as many --rows as --model, or none to check that the checkpoints load")
    torch.set_num_threads(1)
    pairs = zip(args.model, args.rows or [None] * len(args.model))
    results = [check(model, rows, args.images_root, args.limit) for model, rows in pairs]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
