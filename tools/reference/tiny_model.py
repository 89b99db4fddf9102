"""Random-weight Qwen2-VL and Qwen2.5-VL checkpoints in every layout that Hugging Face folders come in.

Nothing here computes with a model: it draws weights, and writes `config.json` in one of three dialects, the weights
under one of three namings, in one file or several, as f32, bf16 or f16.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

TEXT_DEFAULTS = {
    "vocab_size": 515,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "mrope_section": None,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
VISION_COMMON = {
    "num_heads": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
# By `model_type`, under the names of the family's vision_config.
VISION_DEFAULTS = {
    "qwen2_vl": VISION_COMMON | {"depth": 1, "embed_dim": 16, "mlp_ratio": 2},
    "qwen2_5_vl": VISION_COMMON | {
        "depth": 2, "hidden_size": 16, "intermediate_size": 36, "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2,
    },
}
PROCESSORS = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor"}
ARCHITECTURES = {"qwen2_vl": "Qwen2VLForConditionalGeneration", "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration"}
DIALECTS = ("nested", "flat", "both")
NAMINGS = ("published", "v4.52", "language_model")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_options(pairs: list[str], family: str = "qwen2_vl") -> dict:
    """`["hidden_size=36", "vision.depth=1"]` to a full set of sizes; an unknown key is an error."""
    text, vision = dict(TEXT_DEFAULTS), dict(VISION_DEFAULTS[family])
    for pair in pairs:
        key, _, value = pair.partition("=")
        target = vision if key.startswith("vision.") else text
        key = key.removeprefix("vision.")
        if key not in target:
            raise SystemExit(f"--random: unknown size {pair!r}; known: {sorted(text)}, vision.{sorted(vision)}")
        target[key] = json.loads(value)
    head_dim, rest = divmod(text["hidden_size"], text["num_attention_heads"])
    if rest or text["num_attention_heads"] % text["num_key_value_heads"]:
        raise SystemExit("--random: heads must divide hidden_size and kv heads must divide heads")
    if text["mrope_section"] is None:
        side = 3 * head_dim // 16
        text["mrope_section"] = [head_dim // 2 - 2 * side, side, side]
    if 2 * sum(text["mrope_section"]) != head_dim:
        raise SystemExit(f"--random: mrope_section {text['mrope_section']} must sum to {head_dim // 2}, half of head_dim")
    if tower_width(vision) % (4 * vision["num_heads"]):
        raise SystemExit("--random: the vision width / vision.num_heads must be a multiple of 4 (2-axis rotary)")
    return {"family": family, "text": text, "vision": vision}


def tower_width(vision: dict) -> int:
    return vision.get("embed_dim") or vision["hidden_size"]


def parameter_shapes(options: dict) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter under its published name (`model.layers.*`, `visual.*`, `lm_head.weight`)."""
    t, v = options["text"], options["vision"]
    width, ffn = t["hidden_size"], t["intermediate_size"]
    kv = width // t["num_attention_heads"] * t["num_key_value_heads"]
    gated = options["family"] == "qwen2_5_vl"
    e, merged = tower_width(v), tower_width(v) * v["spatial_merge_size"] ** 2
    patch = (v["in_channels"], v["temporal_patch_size"], v["patch_size"], v["patch_size"])
    shapes = {"visual.patch_embed.proj.weight": (e, *patch)}
    for i in range(v["depth"]):
        p = f"visual.blocks.{i}."
        hidden = v["intermediate_size"] if gated else e * v["mlp_ratio"]
        mlp = (("gate_proj", hidden, e), ("up_proj", hidden, e), ("down_proj", e, hidden)) if gated else (("fc1", hidden, e), ("fc2", e, hidden))
        for norm in ("norm1", "norm2"):
            shapes |= {f"{p}{norm}.weight": (e,)} | ({} if gated else {f"{p}{norm}.bias": (e,)})
        for name, out, inp in (("attn.qkv", 3 * e, e), ("attn.proj", e, e), *((f"mlp.{name}", out, inp) for name, out, inp in mlp)):
            shapes |= {f"{p}{name}.weight": (out, inp), f"{p}{name}.bias": (out,)}
    shapes |= {"visual.merger.ln_q.weight": (e,)} | ({} if gated else {"visual.merger.ln_q.bias": (e,)})
    shapes |= {"visual.merger.mlp.0.weight": (merged, merged), "visual.merger.mlp.0.bias": (merged,)}
    shapes |= {"visual.merger.mlp.2.weight": (width, merged), "visual.merger.mlp.2.bias": (width,)}
    shapes["model.embed_tokens.weight"] = (t["vocab_size"], width)
    for i in range(t["num_hidden_layers"]):
        p = f"model.layers.{i}."
        shapes |= {f"{p}input_layernorm.weight": (width,), f"{p}post_attention_layernorm.weight": (width,)}
        for name, out in (("q_proj", width), ("k_proj", kv), ("v_proj", kv)):
            shapes |= {f"{p}self_attn.{name}.weight": (out, width), f"{p}self_attn.{name}.bias": (out,)}
        shapes[f"{p}self_attn.o_proj.weight"] = (width, width)
        shapes |= {f"{p}mlp.gate_proj.weight": (ffn, width), f"{p}mlp.up_proj.weight": (ffn, width)}
        shapes[f"{p}mlp.down_proj.weight"] = (width, ffn)
    shapes["model.norm.weight"] = (width,)
    if not t["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (t["vocab_size"], width)
    return shapes


def draw_weights(options: dict, seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Gaussian weights, large enough that every part of the model moves the logits, rounded to `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    tied = options["text"]["tie_word_embeddings"]
    weights = {}
    for name, shape in parameter_shapes(options).items():
        mean = 0.0
        if "norm" in name or "ln_q" in name:
            mean, std = (1.0, 0.15) if name.endswith("weight") else (0.0, 0.06)
        elif name.endswith("bias"):
            std = 0.06
        elif name == "model.embed_tokens.weight":
            # A tied table is the head as well: keep its logits in a language model's range at any width.
            std = min(0.25, 1.5 / shape[1] ** 0.5) if tied else 0.5
        elif name == "lm_head.weight":
            std = 0.25
        elif "patch_embed" in name:
            std = 0.02
        else:
            # Between 0.1 and 0.2 at these widths: each block's output is of the residual stream's size.
            std = min(0.2, 0.8 / shape[1] ** 0.5)
        weights[name] = (mean + std * torch.randn(shape, generator=generator)).to(dtype)
    return weights


def config_json(options: dict, dialect: str, dtype: str, ids: dict[str, int]) -> dict:
    """`config.json` as published ("flat"), as transformers 4.52-4.57 saves it ("both"), or as 5.x does ("nested")."""
    t, v, family = options["text"], options["vision"], options["family"]
    special = {
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
    }
    text = {
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "hidden_act": "silu",
        "hidden_size": t["hidden_size"],
        "initializer_range": 0.02,
        "intermediate_size": t["intermediate_size"],
        "max_position_embeddings": t["max_position_embeddings"],
        "max_window_layers": t["num_hidden_layers"],
        "num_attention_heads": t["num_attention_heads"],
        "num_hidden_layers": t["num_hidden_layers"],
        "num_key_value_heads": t["num_key_value_heads"],
        "rms_norm_eps": t["rms_norm_eps"],
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": t["vocab_size"],
    }
    vision = {key: value for key, value in v.items() if key != "in_channels"}
    vision["out_hidden_size" if family == "qwen2_5_vl" else "hidden_size"] = t["hidden_size"]
    rope = {"mrope_section": t["mrope_section"]}
    architectures = {"architectures": [ARCHITECTURES[family]]}
    if dialect == "flat":
        vision |= {"in_chans": v["in_channels"], "spatial_patch_size": v["patch_size"]}
        return architectures | text | special | {
            "vision_token_id": ids["<|vision_pad|>"],
            "model_type": family,
            "rope_scaling": {"type": "mrope"} | rope,
            "rope_theta": t["rope_theta"],
            "sliding_window": 32768,
            "tie_word_embeddings": t["tie_word_embeddings"],
            "torch_dtype": dtype,
            "transformers_version": "4.41.2",
            "vision_config": vision,
        }
    vision |= {"hidden_act": "silu" if family == "qwen2_5_vl" else "quick_gelu", "in_channels": v["in_channels"], "initializer_range": 0.02}
    layers = {"layer_types": ["full_attention"] * t["num_hidden_layers"], "sliding_window": None}
    if dialect == "both":
        rope_keys = {"rope_scaling": rope | {"rope_type": "default", "type": "default"}, "rope_theta": t["rope_theta"]}
        inner = text | layers | rope_keys | {
            "dtype": dtype,
            "image_token_id": None,
            "model_type": f"{family}_text",
            "tie_word_embeddings": t["tie_word_embeddings"],
            "video_token_id": None,
        }
        vision |= {"model_type": family, "in_chans": v["in_channels"], "spatial_patch_size": v["patch_size"]}
        return architectures | text | special | rope_keys | {
            "dtype": dtype,
            "model_type": family,
            "sliding_window": None,
            "text_config": inner,
            "transformers_version": "4.57.1",
            "vision_config": vision,
            "vision_token_id": ids["<|vision_pad|>"],
        }
    text |= layers | {"model_type": f"{family}_text", "pad_token_id": None}
    text["rope_parameters"] = rope | {"rope_theta": t["rope_theta"], "rope_type": "default"}
    vision |= {"model_type": f"{family}_vision", "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"}}
    return architectures | special | {
        "dtype": dtype,
        "model_type": family,
        "text_config": text,
        "tie_word_embeddings": t["tie_word_embeddings"],
        "transformers_version": "5.23.0",
        "vision_config": vision,
    }


def renamed(name: str, naming: str) -> str:
    """A published parameter name in another naming."""
    if naming == "published":
        return name
    if naming == "v4.52":
        if name.startswith("visual."):
            return "model." + name
        return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name
    return name if name.startswith("visual.") else "language_model." + name


def write_weights(folder: Path, weights: dict[str, torch.Tensor], naming: str, shards: int) -> None:
    """`model.safetensors`, or `shards` files of about equal size with their index."""
    tensors = {renamed(name, naming): tensor for name, tensor in weights.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    parts, seen = [{} for _ in range(shards)], 0
    for name, tensor in tensors.items():
        parts[min(seen * shards // total, shards - 1)][name] = tensor
        seen += tensor.numel() * tensor.element_size()
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for file, part in zip(files, parts):
        if not part:
            raise SystemExit(f"--shards {shards}: {file} would be empty, take fewer")
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: file for file, part in zip(files, parts) for name in sorted(part)},
    }
    write_json(folder / "model.safetensors.index.json", index)


def write_processor(folder: Path, tokenizer: Path, options: dict, min_pixels: int, max_pixels: int, published: bool,
                    template: str) -> dict[str, int]:
    """Tokenizer, chat template, image processor and generation settings; returns the special tokens' ids.

    `published`: `min_pixels` and `max_pixels` as in the published file, else 5.x's `size`. `template`: where the chat
    template goes, any of "jinja", "json" and "tokenizer_config" joined by "+".
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tokenizer / "tokenizer.json", folder / "tokenizer.json")
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    source = (tokenizer / "chat_template.jinja").read_text()
    settings.pop("chat_template", None)
    for place in template.split("+"):
        if place == "jinja":
            (folder / "chat_template.jinja").write_text(source)
        elif place == "json":
            write_json(folder / "chat_template.json", {"chat_template": source})
        elif place == "tokenizer_config":
            settings["chat_template"] = source
        else:
            raise SystemExit(f"--template: unknown place {place!r}")
    write_json(folder / "tokenizer_config.json", settings)
    vision = options["vision"]
    image = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "merge_size": vision["spatial_merge_size"],
        "patch_size": vision["patch_size"],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "temporal_patch_size": vision["temporal_patch_size"],
    }
    if published:
        image |= {"min_pixels": min_pixels, "max_pixels": max_pixels, "processor_class": PROCESSORS[options["family"]]}
    else:
        image["size"] = {"longest_edge": max_pixels, "shortest_edge": min_pixels}
    write_json(folder / "preprocessor_config.json", image)
    added = {t["content"]: t["id"] for t in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]}
    write_json(folder / "generation_config.json", {
        "bos_token_id": added["<|endoftext|>"],
        "pad_token_id": added["<|endoftext|>"],
        "do_sample": True,
        "eos_token_id": [added["<|im_end|>"], added["<|endoftext|>"]],
        "repetition_penalty": 1.0,
        "temperature": 0.01,
        "top_p": 0.001,
        "top_k": 1,
        "transformers_version": "4.41.2",
    })
    return added


def write_checkpoint(folder: Path, options: dict, weights: dict[str, torch.Tensor], ids: dict[str, int], dialect: str,
                     naming: str, shards: int) -> None:
    """`config.json` and the weights; the dtype is the weights' own."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    write_json(folder / "config.json", config_json(options, dialect, dtype, ids))
    write_weights(folder, weights, naming, shards)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
