#!/usr/bin/env python3
"""Loads model folders with transformers and compares every weight with the files.

    python tools/reference/check_loads.py FOLDER [FOLDER ...]

For each folder: from_pretrained of the class that its config.json names has to report no missing, unexpected
or mismatched key, every tensor of the safetensors files has to be in the loaded model, and every
parameter of the model in the files (a tied head in its embedding). Prints one line per folder with the
largest difference between a loaded weight and the file's, which has to be 0. Exits 1 if any folder fails.
"""
import json
import pathlib
import sys

import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText


def canonical(name):
    """One name for a parameter, whichever transformers version or file it comes from."""
    for old, new in (
        ("model.visual.", "visual."),
        ("model.language_model.", "model."),
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
    ):
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def stored_tensors(folder):
    """Canonical name -> tensor, from the one file or from the shards of the index."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        files = ["model.safetensors"]
    else:
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    tensors = {}
    for name in files:
        with safe_open(folder / name, framework="pt") as handle:
            if (handle.metadata() or {}).get("format") != "pt":
                raise ValueError(f"{name}: metadata format is not pt")
            for key in handle.keys():
                tensors[canonical(key)] = handle.get_tensor(key)
    return tensors


def check(folder):
    """One line about the folder; raises ValueError if it does not load as it was written."""
    dtype = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True, **{dtype: "auto"}
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            raise ValueError(f"{kind}: {sorted(info[kind])[:10]}")
    stored = stored_tensors(folder)
    loaded = {canonical(name): tensor for name, tensor in model.state_dict().items()}
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if tied and "lm_head.weight" not in stored:
        loaded.pop("lm_head.weight", None)
    if loaded.keys() != stored.keys():
        raise ValueError(f"names differ: {sorted(loaded.keys() ^ stored.keys())[:10]}")
    worst = 0.0
    for name, tensor in stored.items():
        if tensor.dtype != loaded[name].dtype or tensor.shape != loaded[name].shape:
            raise ValueError(f"{name}: file {tensor.dtype} {tuple(tensor.shape)}, model {loaded[name].dtype}")
        if tensor.numel():
            worst = max(worst, (tensor.double() - loaded[name].double()).abs().max().item())
    if worst != 0.0:
        raise ValueError(f"weights differ by up to {worst}")
    config = AutoConfig.from_pretrained(folder)
    named = json.loads((folder / "config.json").read_text())["architectures"]
    if named != [type(model).__name__]:
        raise ValueError(f"config.json names {named}, transformers loads {type(model).__name__}")
    text = getattr(config, "text_config", config)
    dtypes = ",".join(sorted({str(t.dtype).removeprefix("torch.") for t in stored.values()}))
    return f"{len(stored)} tensors, {dtypes}, tied {tied}, {text.num_hidden_layers} layers, max difference {worst}"


def main(folders):
    if not folders:
        sys.exit(__doc__)
    failed = 0
    for folder in map(pathlib.Path, folders):
        try:
            print(f"ok   {folder}: {check(folder)}")
        except Exception as error:  # one folder that fails must not hide the others
            failed += 1
            print(f"FAIL {folder}: {type(error).__name__}: {error}")
    print(f"transformers {transformers.__version__}, torch {torch.__version__}: {failed} of {len(folders)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
