#!/usr/bin/env python3
"""A random-weight checkpoint of Qwen2-VL-2B's real size, and othink's bf16 arithmetic held against torch's on it.

    checkpoint.py make FOLDER [--size tiny] [--device cpu]      checkpoint, bundle and torch's own bf16 results
    othink-train parity --model FOLDER --device cuda --dtype bf16 --dump OURS.safetensors
    checkpoint.py compare FOLDER OURS.safetensors

The rule: per tensor, othink's error in bf16 is at most twice the error of plain torch in bf16 (transformers, SDPA), by the largest
absolute difference and by the Euclidean norm (not by the former for a few numbers, nor at all for a single one). The truth is torch in
f64, or in f32 (without TF32) where f64 does not fit. The weights are stored in bf16, so that all programs start from the same numbers.
Of the gradients a few parameters' are kept: of the first, middle and last layers, and whatever is not in a layer.

Needs what `tools/reference/requirements.txt` names; another recent torch and transformers do as well.
"""

import argparse
import re
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))

from make_bundle import GRPO, finish
from make_test_bundles import TOKENIZER, example, picture, user
from oracle import Float64, Processor, Reference, load_model, published_name
from tiny_model import draw_weights, parse_options, write_checkpoint, write_json, write_processor

SIZES = {
    "2b": "vocab_size=151936 hidden_size=1536 intermediate_size=8960 num_hidden_layers=28 num_attention_heads=12 "
    "num_key_value_heads=2 mrope_section=[16,24,24] max_position_embeddings=32768 tie_word_embeddings=true "
    "vision.depth=32 vision.embed_dim=1280 vision.num_heads=16 vision.mlp_ratio=4",
    "tiny": "vocab_size=600 hidden_size=96 intermediate_size=160 num_hidden_layers=3 num_attention_heads=3 "
    "num_key_value_heads=1 mrope_section=[4,6,6] tie_word_embeddings=true "
    "vision.depth=3 vision.embed_dim=64 vision.num_heads=4 vision.mlp_ratio=4",
}
# Width and height of the pictures.
PICTURES = {"2b": ((448, 336), (280, 392)), "tiny": ((112, 84), (56, 98))}
PIXELS = (3136, 401408)
# Parameters whose gradients are kept, by part of the model; {i} is the first, middle and last layer.
TEXT_GRADIENTS = ("input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.v_proj.bias", "self_attn.o_proj.weight",
                  "mlp.gate_proj.weight", "mlp.down_proj.weight")
VISION_GRADIENTS = ("norm1.weight", "attn.qkv.weight", "attn.proj.bias", "mlp.fc1.weight", "mlp.fc2.weight")
# Device memory that the passes in f64 take, in bytes a parameter: weights, and what is kept for the backward pass.
EXACT_BYTES = 24
# Fewer numbers than these have no typical largest error, and no typical norm of it, whose ratio to another's would mean something. Log-probs of single
# examples are judged together, as `batch.logps`.
FEWEST_FOR_LARGEST, FEWEST_FOR_NORM = 128, 16


def examples(size: str, folder: Path) -> list[dict]:
    """Two conversations of a picture each, which are drawn into the folder, and one of text."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for seed, (width, height) in enumerate(PICTURES[size]):
        picture(width, height, seed).save(folder / "images" / f"{seed}.png")
    think = "<think> Counting from left to right: one, two, three in the upper row, then two more below, so 3 + 2 = 5. </think>"
    return [
        example(f"{think}\n<answer> 5 </answer><|im_end|>", user("images/0.png", "How many shapes are in the picture?")),
        example(f"<think> {'The base is 12 and the height is 7. ' * 3}</think>\n<answer> 42 </answer><|im_end|>",
                user("images/1.png", "What is the area of the triangle?")),
        example("Three times four is twelve, and twelve less five is seven, so the answer is seven.<|im_end|>",
                user("What is 3 * 4 - 5?")),
    ]


def kept_gradients(options: dict) -> set[str]:
    names = {"model.embed_tokens.weight", "model.norm.weight", "visual.patch_embed.proj.weight", "visual.merger.ln_q.weight",
             "visual.merger.mlp.0.weight", "visual.merger.mlp.2.weight", "visual.merger.mlp.2.bias"}
    for prefix, count, parts in (("model.layers", options["text"]["num_hidden_layers"], TEXT_GRADIENTS),
                                 ("visual.blocks", options["vision"]["depth"], VISION_GRADIENTS)):
        names |= {f"{prefix}.{i}.{part}" for i in (0, count // 2, count - 1) for part in parts}
    return names


def results(model, processor: Processor, inputs: dict, folder: Path, wanted: set[str]) -> dict[str, torch.Tensor]:
    """Forward values of every example, log-probabilities, the loss over all, and the wanted gradients, in host memory."""
    run = Reference(model, processor, inputs["examples"], folder)
    for encoded in run.encoded:
        encoded |= {key: value.to(model.device) for key, value in encoded.items() if torch.is_tensor(value)}
    for given, encoded in zip(inputs["examples"], run.encoded):
        given |= {key: encoded[key] for key in ("prompt_text", "images", "prompt_len")} | {"seq_len": len(encoded["ids"])}
    out = {}
    for index, encoded in enumerate(run.encoded):
        values = run.example(index)
        # As a trainer takes them of bf16 logits, in f32.
        logps = values[f"ex{index}.logits"][:-1].float().log_softmax(-1)
        values[f"ex{index}.completion_logps"] = logps.gather(-1, encoded["ids"][encoded["prompt_len"] :, None])[:, 0]
        out |= {key: value.cpu() for key, value in values.items() if not re.search(r"logits_all|attention_mask", key)}
        del values
    parameters = {published_name(name): parameter for name, parameter in model.named_parameters()}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in wanted)
    padded, loss_mask = run.batch_inputs()
    logps = run.forward(padded)[:, :-1].float().log_softmax(-1)
    logps = logps.gather(-1, padded["input_ids"][:, 1:, None])[..., 0] * loss_mask[:, 1:]
    loss = -logps.sum() / loss_mask.sum()
    loss.backward()
    out |= {"batch.logps": logps.detach().cpu(), "loss": loss.detach().cpu()[None]}
    out |= {f"grad.{name}": parameters[name].grad.cpu() for name in sorted(wanted)}
    model.zero_grad()
    return {key: value.clone().contiguous() for key, value in out.items()}


def make(args: argparse.Namespace) -> None:
    # f32 means f32: no product of the truth is rounded to TF32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(args.seed)
    folder, options = Path(args.folder), parse_options(SIZES[args.size].split())
    inputs = {"examples": examples(args.size, folder), "grpo_e2e": GRPO}
    ids = write_processor(folder, TOKENIZER, options, *PIXELS, True, "jinja")
    weights = draw_weights(options, args.seed, torch.bfloat16)
    write_checkpoint(folder, options, weights, ids, "flat", "published", 1)
    count = sum(tensor.numel() for tensor in weights.values())
    del weights
    processor, wanted = Processor(folder), kept_gradients(options)
    inputs["processor"] = processor.pixels() | {"backend": "PIL bicubic"}
    low = load_model(folder, torch.bfloat16).to(args.device)
    plain = results(low, processor, inputs, folder, wanted)
    del low
    model = load_model(folder).to(args.device)
    single = results(model, processor, inputs, folder, wanted)
    expected, noise = single, {}
    if args.exact is None:
        args.exact = args.device == "cpu" or torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() > EXACT_BYTES * count
    if args.exact:
        with Float64():
            exact = results(model.double(), processor, inputs, folder, wanted)
        # What parity in f32 is held to.
        for key, value in exact.items():
            if value.dtype == torch.float64 and not key.endswith("pixel_values"):
                noise["noise." + key] = (single[key].double() - value).abs().max().float()[None]
        expected = {key: value.float() if value.dtype == torch.float64 else value for key, value in exact.items()}
    small = {key: value.int() if value.dtype == torch.int64 else value for key, value in (expected | noise).items()}
    note = f"{'f64' if args.exact else 'f32'} compute, torch {torch.__version__}, sdpa, {args.device}"
    save_file(small, folder / "expected.safetensors", metadata={"note": note})
    floats = {key: value for key, value in plain.items() if value.is_floating_point()}
    save_file(floats, folder / "torch_bf16.safetensors", metadata={"note": f"bf16, torch {torch.__version__}, sdpa"})
    added = processor.tokenizer.get_added_vocab()
    write_json(folder / "inputs.json", finish(inputs, dict(sorted(added.items(), key=lambda item: item[1]))))
    print(f"{folder}: {count} parameters, {len(expected)} tensors, {note}")


def coordinate(index: int, shape: torch.Size) -> list[int]:
    at = []
    for size in reversed(shape):
        index, rest = divmod(index, size)
        at.insert(0, rest)
    return at


def judge(key: str, expected: torch.Tensor, plain: torch.Tensor, ours: torch.Tensor) -> tuple[list[str], str]:
    """The cells of a tensor's line, and the verdict."""
    if ours.shape != expected.shape:
        return [], f"FAIL shape {list(ours.shape)} instead of {list(expected.shape)}"
    truth, ours = expected.double().flatten(), ours.double().flatten()
    theirs, off = (plain.double().flatten() - truth).abs(), (ours - truth).abs()
    size = truth.norm().item() or 1.0
    pairs = [(theirs.max().item(), off.max().item()), (theirs.norm().item() / size, off.norm().item() / size)]
    cells = [cell for torchs, mine in pairs for cell in (f"{torchs:.2e}", f"{mine:.2e}", f"{mine / (torchs or 1e-300):.2f}")]
    within = [mine <= 2 * torchs for torchs, mine in pairs]
    beyond = ~torch.isfinite(ours)
    if not beyond.any():
        if all(within):
            return cells, "ok"
        if len(truth) < FEWEST_FOR_NORM or within[1] and len(truth) < FEWEST_FOR_LARGEST:
            return cells, "too few numbers for a ratio"
        beyond = off > 2 * pairs[0][0] if not within[0] else off == off.max()
    place = beyond.nonzero()[0].item()
    return cells, f"FAIL at {coordinate(place, expected.shape)}: {ours[place]:.7e} instead of {truth[place]:.7e}"


def compare(args: argparse.Namespace) -> int:
    """One line per tensor: error of torch and of othink and their ratio, by largest difference and by norm."""
    folder, verdicts = Path(args.folder), []
    with (safe_open(folder / "expected.safetensors", "pt") as expected, safe_open(folder / "torch_bf16.safetensors", "pt") as plain,
          safe_open(args.ours, "pt") as ours):
        print(f"truth: {expected.metadata()['note']}; peer: {plain.metadata()['note']}")
        computed, keys = set(ours.keys()), [key for key in list(expected.keys()) if not key.startswith("noise.")]
        width = max(map(len, keys))
        heads = ("torch max", "ours max", "ratio", "torch l2", "ours l2", "ratio")
        for key in ("tensor", *keys):
            cells, verdict = [], ""
            if key == "tensor":
                cells = list(heads)
            elif key not in computed:
                verdict = "FAIL othink has not computed it"
            elif not expected.get_tensor(key).is_floating_point() or key.endswith("pixel_values"):
                # Inputs: parity holds them to equal bytes.
                same = torch.allclose(expected.get_tensor(key).double(), ours.get_tensor(key).double(), rtol=0, atol=1e-6)
                verdict = "ok" if same else "FAIL the inputs differ"
            else:
                cells, verdict = judge(key, expected.get_tensor(key), plain.get_tensor(key), ours.get_tensor(key))
                verdicts.append(verdict)
            aligned = " ".join(f"{cell:>9}" for cell in cells or [""] * 6)
            print(f"{key:{width}} {aligned}  {verdict}".rstrip())
            verdicts += [verdict] if verdict.startswith("FAIL") and not cells else []
    failed = sum(verdict.startswith("FAIL") for verdict in verdicts)
    judged = sum(verdict == "ok" or verdict.startswith("FAIL at") for verdict in verdicts)
    print(f"BF16 {judged} tensors by the rule of twice torch's error, {failed} failed")
    return 1 if failed or not judged else 0


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest="command", required=True)
    m = commands.add_parser("make")
    m.add_argument("folder")
    m.add_argument("--size", choices=SIZES, default="2b")
    m.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    m.add_argument("--seed", type=int, default=0)
    m.add_argument("--exact", action=argparse.BooleanOptionalAction, help="the truth in f64 or in f32 (default: f64 where it fits)")
    c = commands.add_parser("compare")
    c.add_argument("folder")
    c.add_argument("ours")
    args = p.parse_args()
    if args.command == "compare":
        return compare(args)
    make(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
