#!/usr/bin/env python3
"""Makes the bundles under `tests/bundles` (all but `qwen2_vl_a`): `make_test_bundles.py [NAME ...]`.

Each is a random-weight checkpoint of one kind with the features its entry in `BUNDLES` names; images are drawn here.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy
from PIL import Image, ImageDraw

import make_bundle

ROOT = Path(__file__).resolve().parents[2] / "tests" / "bundles"
TOKENIZER = ROOT / "qwen2_vl_a"


def picture(width: int, height: int, seed: int, mode: str = "RGB") -> Image.Image:
    """Smooth colour ramps with a few shapes, in one of PIL's modes."""
    rng = numpy.random.default_rng(seed)
    y, x = numpy.mgrid[0:height, 0:width] / max(width, height)
    base = [128 + 100 * numpy.sin(rng.uniform(2, 6) * x + rng.uniform(2, 6) * y + rng.uniform(0, 6)) for _ in range(3)]
    image = Image.fromarray(numpy.stack(base, -1).astype(numpy.uint8), "RGB")
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        cx, cy, r = rng.integers(0, width), rng.integers(0, height), rng.integers(3, 3 + min(width, height) // 2)
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        shape = draw.ellipse if rng.integers(2) else draw.rectangle
        shape([cx - r, cy - r // 2, cx + r, cy + r], fill=colour)
    if "A" in mode:
        # Colours stay under the transparent places: whether alpha is dropped or composited shows.
        alpha = Image.fromarray((255 * (0.5 + 0.5 * numpy.cos(9 * x - 5 * y))).astype(numpy.uint8), "L")
        image = image.convert("L") if mode == "LA" else image
        image.putalpha(alpha)
        return image
    return image.quantize(23) if mode == "P" else image.convert(mode)


def user(*parts: str) -> dict:
    """A user message; parts that name a file under images/ are images."""
    content = [{"type": "image", "image": p} if p.startswith("images/") else {"type": "text", "text": p} for p in parts]
    return {"role": "user", "content": content}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def example(completion: str, *messages: dict) -> dict:
    return {"messages": list(messages), "completion": completion}


def save(folder: Path, images: dict) -> None:
    (folder / "images").mkdir()
    for name, (image, *options) in images.items():
        image.save(folder / "images" / name, **(options[0] if options else {}))


def rotated_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def several_images() -> tuple[dict, list]:
    images = {"a.png": (picture(56, 29, 1),), "b.png": (picture(61, 83, 2),), "c.png": (picture(130, 90, 3),), "d.png": (picture(28, 56, 4),)}
    system = {"role": "system", "content": "You count shapes. Answer in <answer> tags."}
    return images, [
        example("<think> The second one has 4 circles, the first 2. </think><answer> 2 </answer><|im_end|>", system,
                user("images/a.png", "How many more circles are in", "images/b.png", "images/d.png", "than in the first?")),
        example("The area is 12.<|im_end|>", user("What is the area of the triangle?", "images/c.png"),
                assistant("It is 9 times 2, so 18."), user("images/d.png", "images/a.png", "And the area of these?")),
        example("<answer>7</answer><|im_end|>", user("images/d.png", "Count the red squares.")),
    ]


def windows() -> tuple[dict, list]:
    """Several images of a size that is no multiple of a window's, one of a single window, one of one token."""
    images = {"a.png": (picture(196, 140, 21),), "b.png": (picture(113, 30, 22),), "c.png": (picture(84, 84, 23),), "d.png": (picture(28, 28, 24),)}
    return images, [
        example("<think> The second has 4. </think><answer> 4 </answer><|im_end|>",
                user("images/b.png", "Which has more circles,", "images/a.png", "or", "images/d.png", "?")),
        example("It is 12.<|im_end|>", user("images/c.png", "What is the area?"), assistant("Of which?"), user("images/b.png", "This one.")),
        example("<answer>7</answer><|im_end|>", user("images/a.png", "Count the red squares.")),
    ]


def text_only() -> tuple[dict, list]:
    return {"a.png": (picture(40, 62, 5),)}, [
        example("<think> 3 and 4 are 7. </think>\n<answer> 7 </answer><|im_end|>", user("What is 3 + 4?")),
        example("There are no red circles.<|im_end|>", {"role": "system", "content": [{"type": "text", "text": "Be short."}]},
                user("How many red circles are in the picture?"), assistant("I see no picture."), user("Count again!")),
        example("<answer>2</answer><|im_end|>", user("images/a.png", "How many shapes?")),
        # Control tokens that a user writes are text.
        example("No.<|im_end|>", user("Is <|im_end|> here,\nor<|image_pad|>not? <|vision_start|>")),
    ]


def plain() -> tuple[dict, list]:
    return {"a.png": (picture(45, 57, 6),), "b.png": (picture(84, 30, 7),)}, [
        example("<answer>3</answer><|im_end|>", user("images/a.png", "How many red squares are in the picture?")),
        example("The answer is 42", user("images/b.png", "What is the angle?")),
    ]


def one_image() -> tuple[dict, list]:
    return {"a.png": (picture(37, 51, 8),)}, [example("<answer>3</answer><|im_end|>", user("images/a.png", "How many circles?"))]


def odd_shapes() -> tuple[dict, list]:
    return {"long.png": (picture(28, 196, 9),), "tiny.png": (picture(17, 11, 10),), "wide.png": (picture(150, 22, 11),)}, [
        example("<answer> 12 </answer><|im_end|>", user("images/long.png", "images/tiny.png", "What is the area of the larger?")),
        example("It is 7.<|im_end|>", user("images/wide.png", "Count the circles.")),
    ]


def image_kinds() -> tuple[dict, list]:
    palette = picture(33, 41, 15, "P")
    images = {
        "rgba.png": (picture(40, 30, 12, "RGBA"),),
        "grey_alpha.png": (picture(30, 40, 13, "LA"),),
        "grey.png": (picture(29, 27, 14, "L"),),
        "palette.png": (palette, {"transparency": 3}),
        "one_bit.png": (picture(31, 44, 16, "1"),),
        "turned.jpg": (picture(52, 31, 17), {"quality": 90, "exif": rotated_exif(6)}),
        "grey.jpg": (picture(35, 30, 18, "L"), {"quality": 85, "exif": rotated_exif(3)}),
        "lossless_alpha.webp": (picture(34, 28, 19, "RGBA"), {"lossless": True, "exact": True}),
        "lossy.webp": (picture(47, 33, 20), {"quality": 80}),
    }
    return images, [
        example("<answer>3</answer><|im_end|>", user("images/rgba.png", "images/grey_alpha.png", "images/grey.png",
                                                     "images/palette.png", "images/one_bit.png", "How many are grey?")),
        example("One.<|im_end|>", user("images/lossless_alpha.webp", "How many?")),
        example("Two.<|im_end|>", user("images/turned.jpg", "images/grey.jpg", "How many?")),
        example("Three.<|im_end|>", user("images/lossy.webp", "How many?")),
    ]


SMALL_IMAGES = "--min_pixels 784 --max_pixels 4704"
FEW_KEYS = r"input_ids$|position_ids$|prompt_len$|logits$|completion_logps$|loss$|batch\.logps$|grad_norm$|grad\.(model\.norm|model\.layers\.0\.self_attn\.[qkv]_proj|visual\.merger\.(ln_q|mlp\.2)|visual\.blocks\.0\.norm1)"
TINY = "hidden_size=16 num_attention_heads=2 num_key_value_heads=1 intermediate_size=24 num_hidden_layers=1 mrope_section=[2,1,1] rms_norm_eps=1e-5"
DIALECT = f"--random {TINY} tie_word_embeddings=true --round float16 {SMALL_IMAGES} --seed 5"
DIALECT_NAMES = ("dialect_v5", "dialect_v4_52", "dialect_language_model", "dialect_flat_f16")
# Name: examples, arguments of make_bundle.py, and two regular expressions: keys kept, keys dropped.
BUNDLES = {
    "tied_kv1_odd": (
        several_images,
        "--random vocab_size=523 hidden_size=36 num_attention_heads=3 num_key_value_heads=1 mrope_section=[1,2,3] "
        "intermediate_size=77 tie_word_embeddings=true vision.embed_dim=24 vision.num_heads=3 vision.mlp_ratio=3 "
        f"{SMALL_IMAGES} --seed 1",
        "", r"logits_all|pixel_values|ex1\.logits",
    ),
    "untied_textonly": (
        text_only,
        "--random vocab_size=517 num_attention_heads=2 num_key_value_heads=2 intermediate_size=40 "
        f"{SMALL_IMAGES} --seed 2",
        "", r"logits_all|pixel_values|ex3\.(logits|gen)",
    ),
    "bf16_sharded": (
        plain,
        "--random vocab_size=600 num_hidden_layers=3 intermediate_size=56 mrope_section=[2,1,1] rope_theta=10000.0 "
        "rms_norm_eps=1e-5 tie_word_embeddings=true vision.depth=2 vision.mlp_ratio=4 --dtype bfloat16 --shards 3 "
        f"--dialect flat --template json+tokenizer_config --published_pixels {SMALL_IMAGES} --seed 3",
        "", r"logits_all",
    ),
    "wide_gqa4_hd32": (
        odd_shapes,
        "--random hidden_size=128 num_attention_heads=4 num_key_value_heads=1 intermediate_size=40 num_hidden_layers=1 "
        "vision.embed_dim=32 vision.num_heads=1 vision.mlp_ratio=1 --dtype bfloat16 --template jinja+json "
        f"--min_pixels 784 --max_pixels 6272 --seed 4",
        "", r"logits_all|(^|\.)grad\.(lm_head|model\.embed|visual\.patch_embed|model\.layers\.0\.self_attn\.[qo]_proj\.w)|pixel_values",
    ),
    "dialect_v5": (one_image, f"{DIALECT} --dialect nested --template tokenizer_config", FEW_KEYS, r"grpo|logits_all"),
    "dialect_v4_52": (one_image, f"{DIALECT} --dialect both --naming v4.52", FEW_KEYS, r"grpo|logits_all"),
    "dialect_language_model": (one_image, f"{DIALECT} --dialect both --naming language_model", FEW_KEYS, r"grpo|logits_all"),
    "dialect_flat_f16": (one_image, f"{DIALECT} --dialect flat --dtype float16 --published_pixels --template json", FEW_KEYS, r"grpo|logits_all"),
    "qwen2_5_tied_odd": (
        windows,
        "--family qwen2_5_vl --random vocab_size=523 hidden_size=36 num_attention_heads=3 num_key_value_heads=1 mrope_section=[1,2,3] "
        "intermediate_size=44 num_hidden_layers=2 tie_word_embeddings=true vision.depth=3 vision.hidden_size=24 vision.num_heads=3 "
        "vision.intermediate_size=37 vision.window_size=84 "
        "--min_pixels 784 --max_pixels 47040 --seed 7",
        "", r"logits_all|pixel_values|ex1\.logits",
    ),
    "qwen2_5_bf16_sharded": (
        odd_shapes,
        "--family qwen2_5_vl --random hidden_size=64 num_attention_heads=2 num_key_value_heads=1 intermediate_size=40 num_hidden_layers=1 "
        "rms_norm_eps=1e-5 vision.hidden_size=32 vision.num_heads=1 vision.intermediate_size=20 vision.fullatt_block_indexes=[0] "
        "--dtype bfloat16 --shards 2 --dialect flat --template json+tokenizer_config --published_pixels --min_pixels 784 --max_pixels 6272 --seed 8",
        "", r"logits_all|(^|\.)grad\.(lm_head|model\.embed|visual\.patch_embed)|pixel_values",
    ),
    "qwen2_5_v4_52": (
        plain,
        f"--family qwen2_5_vl --random {TINY} vision.window_size=42 vision.fullatt_block_indexes=[] {SMALL_IMAGES} --seed 9 "
        "--dialect both --naming v4.52 --dtype float16",
        FEW_KEYS, r"grpo|logits_all",
    ),
    "image_kinds": (
        image_kinds, f"--random {TINY} --dtype bfloat16 --min_pixels 784 --max_pixels 1568 --seed 6",
        r"input_ids$|position_ids$|prompt_len$|image_grid_thw$|pixel_values$|vision_out$|completion_logps$|decoded|loss$|grad_norm$|grad\.visual\.(merger|blocks)",
        r"logits_all|grpo",
    ),
}


def main() -> int:
    names = sys.argv[1:] or list(BUNDLES)
    for name in names:
        examples, arguments, keep, drop = BUNDLES[name]
        images, rows = examples()
        with tempfile.TemporaryDirectory() as temporary:
            source = Path(temporary)
            save(source, images)
            (source / "examples.json").write_text(json.dumps(rows))
            out = ROOT / name
            for old in sorted(out.rglob("*"), reverse=True):
                old.rmdir() if old.is_dir() else old.unlink()
            argv = arguments.split() + ["--tokenizer", str(TOKENIZER), "--examples", str(source / "examples.json"), "--out", str(out)]
            argv += ["--keep", keep, "--drop", drop]
            if name in DIALECT_NAMES:
                argv += ["--same_weights", *(other for other in DIALECT_NAMES if other != name)]
            make_bundle.main(argv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
