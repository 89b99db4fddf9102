"""What transformers computes of a checkpoint of a Qwen2-VL family: the values of a reference bundle.

float32 on the CPU, SDPA, PIL image backend. `Float64` runs the same code in double precision, from which a bundle's
`noise.*` keys come.
"""

import json
import math
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationConfig, Qwen2VLImageProcessorPil
from transformers.image_utils import load_image
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

GREEDY_TOKENS = 24
STOP_AT = 5
MARGIN = 1e-3
REPETITION_PENALTY = 1.3
TRAIN_STEPS = 5


class Float64(TorchFunctionMode):
    """Turns the model code's own casts to float32 (norms, rotary angles) into casts to float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
        return func(*args, **kwargs)


def published_name(name: str) -> str:
    """Name of a parameter in the published checkpoints, from its name inside transformers 5."""
    name = name.removeprefix("model.") if name.startswith("model.visual.") else name
    return name.replace("model.language_model.", "model.", 1)


def load_model(folder: Path, dtype: torch.dtype = torch.float32):
    """The checkpoint in `dtype`; a tensor too many, too few or of another shape is an error."""
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", output_loading_info=True, local_files_only=True
    )
    wrong = {k: sorted(map(str, v)) for k, v in info.items() if v}
    if wrong:
        raise SystemExit(f"{folder}: transformers can't load this checkpoint whole: {json.dumps(wrong)[:2000]}")
    model.generation_config = GenerationConfig()
    return model.eval()


def chat_template(folder: Path) -> str:
    """The chat template, from the first of the three places it may be in."""
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text()
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            if template := json.loads((folder / name).read_text()).get("chat_template"):
                return template
    raise SystemExit(f"{folder}: no chat template in chat_template.jinja, chat_template.json or tokenizer_config.json")


class Processor:
    """Messages and image files to token ids, patches and grids."""

    def __init__(self, folder: Path, min_pixels: int | None = None, max_pixels: int | None = None):
        pixels = {k: v for k, v in (("min_pixels", min_pixels), ("max_pixels", max_pixels)) if v is not None}
        self.image = Qwen2VLImageProcessorPil.from_pretrained(folder, **pixels)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.template = chat_template(folder)
        self.image_id = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.pad_id = self.tokenizer.convert_tokens_to_ids("<|endoftext|>")

    def pixels(self) -> dict[str, int]:
        return {"min_pixels": self.image.size["shortest_edge"], "max_pixels": self.image.size["longest_edge"]}

    def patches(self, images: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches `[n, C*T*14*14]` and grids `[images, 3]` of image files, decoded as transformers decodes a path."""
        out = self.image(images=[load_image(str(path)) for path in images], return_tensors="pt")
        return out["pixel_values"], out["image_grid_thw"]

    def expand(self, ids: list[int], grids: torch.Tensor) -> list[int]:
        """Each image token repeated as often as its image has merged patches."""
        counts = [int(grid.prod()) // self.image.merge_size**2 for grid in grids]
        if ids.count(self.image_id) != len(counts):
            raise SystemExit(f"{ids.count(self.image_id)} image tokens in the prompt, but {len(counts)} images")
        out, next_count = [], iter(counts)
        for token in ids:
            out += [token] * next(next_count) if token == self.image_id else [token]
        return out

    def encode(self, example: dict, root: Path) -> dict:
        """An example of `inputs.json`; image paths are relative to `root`. Control tokens in user text stay text."""
        messages, images = example["messages"], image_paths(example["messages"])
        render = dict(chat_template=self.template, add_generation_prompt=True)
        ids = self.tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=False, sanitize_control_tokens=True, **render
        )
        out = {"images": images, "prompt_text": self.tokenizer.apply_chat_template(messages, tokenize=False, **render)}
        if images:
            out["pixel_values"], out["grids"] = self.patches([root / path for path in images])
            ids = self.expand(ids, out["grids"])
        completion = self.tokenizer.encode(example["completion"], add_special_tokens=False)
        out["ids"], out["prompt_len"] = torch.tensor(ids + completion), len(ids)
        return out


def image_paths(messages: list[dict]) -> list[str]:
    parts = [part for m in messages if not isinstance(m["content"], str) for part in m["content"]]
    return [part["image"] for part in parts if part.get("type") == "image" or "image" in part]


def padded(rows: list[torch.Tensor], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids right-padded to `[B, L]`, with their attention mask."""
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
    return ids, mask


class Reference:
    """A model, the examples and everything a bundle holds of them."""

    def __init__(self, model, processor: Processor, examples: list[dict], root: Path):
        self.model, self.processor = model, processor
        self.examples = examples
        self.encoded = [processor.encode(example, root) for example in examples]

    def inputs(self, ids: torch.Tensor, mask: torch.Tensor, sources: list[dict]) -> dict:
        """Model inputs for ids `[B, L]` whose images are those of `sources`, in order."""
        out = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == self.processor.image_id).int()}
        with_images = [s for s in sources if s["images"]]
        if with_images:
            out["pixel_values"] = torch.cat([s["pixel_values"] for s in with_images]).to(self.model.dtype)
            out["image_grid_thw"] = torch.cat([s["grids"] for s in with_images])
        return out

    def positions(self, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions `[3, B, L]` (0 in padding) and the offset of the next position from the length, `[B]`."""
        return self.model.model.get_rope_index(
            inputs["input_ids"], inputs["mm_token_type_ids"], inputs.get("image_grid_thw"),
            attention_mask=inputs["attention_mask"],
        )

    def forward(self, inputs: dict) -> torch.Tensor:
        return self.model(**inputs, position_ids=self.positions(inputs)[0], use_cache=False).logits

    def example(self, index: int) -> dict[str, torch.Tensor]:
        """`ex{i}.*` without the greedy keys: ids, positions, patches, and every intermediate of the forward."""
        e, model, key = self.encoded[index], self.model, f"ex{index}."
        ids, prompt = e["ids"][None], e["prompt_len"]
        inputs = self.inputs(ids, torch.ones_like(ids), [e])
        kept = {}
        hooks = [model.model.language_model.norm.register_forward_hook(lambda m, i, o: kept.update(final_hidden=o[0]))]
        if e["images"]:
            # The merged rows as the text model gets them: in the image's order, whatever the blocks' order is.
            hooks.append(model.model.visual.register_forward_hook(
                lambda m, i, o: kept.update(vision_pre_merger=o.last_hidden_state, vision_out=o.pooler_output)))
        with torch.no_grad():
            logits = self.forward(inputs)[0]
        for hook in hooks:
            hook.remove()
        positions, delta = self.positions(inputs)
        logps = torch.log_softmax(logits[prompt - 1 : -1], -1).gather(-1, e["ids"][prompt:, None])[:, 0]
        out = {
            "input_ids": e["ids"],
            "attention_mask": torch.ones_like(e["ids"]),
            "prompt_len": torch.tensor([prompt]),
            "position_ids": positions[:, 0],
            "rope_delta": delta.flatten(),
            "logits": logits[prompt - 1 :],
            "logits_all": logits,
            "completion_logps": logps,
            **kept,
        }
        if e["images"]:
            out |= {"image_grid_thw": e["grids"], "pixel_values": e["pixel_values"]}
        return {key + name: value for name, value in out.items()}

    def greedy(self, index: int) -> dict[str, torch.Tensor]:
        """`ex{i}.gen_*`: greedy tokens, their log-probs, and how far the second choice was behind.

        Cut before the first step whose two best scores are closer than `MARGIN`, where rounding may decide.
        """
        e, key = self.encoded[index], f"ex{index}."
        ids = e["ids"][None, : e["prompt_len"]]
        inputs = self.inputs(ids, torch.ones_like(ids), [e])

        def run(penalty: float, stop: int | None = None):
            config = GenerationConfig(
                do_sample=False, max_new_tokens=GREEDY_TOKENS, repetition_penalty=penalty, eos_token_id=stop,
                pad_token_id=self.processor.pad_id, output_logits=True, output_scores=True, return_dict_in_generate=True,
            )
            out = self.model.generate(**inputs, generation_config=config)
            tokens = out.sequences[0, ids.shape[1] :]
            scores, logits = torch.cat(out.scores), torch.cat(out.logits)
            best = scores.topk(2, -1).values
            margin = best[:, 0] - best[:, 1]
            close = (margin < MARGIN).nonzero().flatten().tolist()
            n = close[0] if close else len(tokens)
            logps = torch.log_softmax(logits.float(), -1).gather(-1, tokens[:, None])[:, 0]
            return tokens[:n], margin[:n], logps[:n]

        tokens, margin, logps = run(1.0)
        rep_tokens, rep_margin, _ = run(REPETITION_PENALTY)
        out = {
            "gen_ids": tokens,
            "gen_margin": margin,
            "gen_logps": logps,
            f"gen_ids_rep{REPETITION_PENALTY}": rep_tokens,
            f"gen_margin_rep{REPETITION_PENALTY}": rep_margin,
        }
        if len(tokens) > STOP_AT:
            out["gen_stop_id"] = tokens[STOP_AT : STOP_AT + 1]
            out["gen_ids_stop"] = run(1.0, int(tokens[STOP_AT]))[0]
        return {key + name: value for name, value in out.items()}

    def batch_inputs(self) -> tuple[dict, torch.Tensor]:
        """All examples right-padded, and the mask of completion tokens `[B, L]`."""
        ids, mask = padded([e["ids"] for e in self.encoded], self.processor.pad_id)
        loss_mask = mask.clone()
        for row, e in zip(loss_mask, self.encoded):
            row[: e["prompt_len"]] = 0
        return self.inputs(ids, mask, self.encoded), loss_mask

    def batch_logps(self, inputs: dict, loss_mask: torch.Tensor) -> torch.Tensor:
        """Log-prob of token t+1 at place t, zero outside the completions: `[B, L-1]`."""
        logps = torch.log_softmax(self.forward(inputs)[:, :-1], -1)
        return logps.gather(-1, inputs["input_ids"][:, 1:, None])[..., 0] * loss_mask[:, 1:]

    def gradients(self) -> dict[str, torch.Tensor]:
        """Gradient of every parameter under its published name; zero where nothing reached it."""
        named = {published_name(n): p for n, p in self.model.named_parameters()}
        return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named.items()}

    def batch(self, backward: bool = True) -> dict[str, torch.Tensor]:
        """`batch.*`, `loss`, and with `backward` also `grad.*` and `grad_norm`."""
        inputs, loss_mask = self.batch_inputs()
        with torch.set_grad_enabled(backward):
            logps = self.batch_logps(inputs, loss_mask)
            loss = -logps.sum() / loss_mask.sum()
        out = {f"batch.{k}": inputs[k] for k in ("attention_mask", "input_ids", "image_grid_thw") if k in inputs}
        out |= {"batch.loss_mask": loss_mask, "batch.position_ids": self.positions(inputs)[0]}
        out |= {"batch.logps": logps.detach(), "loss": loss.detach()[None]}
        if backward:
            self.model.zero_grad()
            loss.backward()
            grads = self.gradients()
            out |= {f"grad.{name}": grad for name, grad in grads.items()}
            out["grad_norm"] = torch.stack([g.norm() for g in grads.values()]).norm()[None]
        return out

    def train(self) -> dict[str, torch.Tensor]:
        """`train.*`: AdamW steps on the batch. The model's weights are put back afterwards."""
        inputs, loss_mask = self.batch_inputs()
        start = {name: value.clone() for name, value in self.model.state_dict().items()}
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
        losses, norms = [], []
        for step in range(TRAIN_STEPS + 1):
            optimizer.zero_grad()
            loss = -self.batch_logps(inputs, loss_mask).sum() / loss_mask.sum()
            losses.append(loss.detach())
            if step < TRAIN_STEPS:
                loss.backward()
                norms.append(torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
                optimizer.step()
        self.model.load_state_dict(start)
        return {"train.losses": torch.stack(losses), "train.grad_norms": torch.stack(norms)}

    def grpo(self, spec: dict, given: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """`grpo_e2e.*`: clipped GRPO with k3 KL on completions of example 0's prompt.

        `given` holds rewards, old and reference log-probs; without it they are drawn around the model's own log-probs.
        """
        e = self.encoded[0]
        prompt = e["ids"][: e["prompt_len"]]
        rows = [torch.tensor(self.processor.tokenizer.encode(c, add_special_tokens=False)) for c in spec["completions"]]
        completion, mask = padded(rows, self.processor.pad_id)
        group = len(rows)
        ids = torch.cat([prompt.expand(group, -1), completion], 1)
        attention = torch.cat([torch.ones(group, len(prompt), dtype=mask.dtype), mask], 1)
        self.model.zero_grad()
        logits = self.forward(self.inputs(ids, attention, [e] * group))[:, len(prompt) - 1 : -1]
        logps = torch.log_softmax(logits, -1).gather(-1, completion[..., None])[..., 0] * mask
        if given is None:
            noise = torch.Generator().manual_seed(0)
            given = {
                f"grpo_e2e.{name}": (logps.detach() + 0.25 * torch.randn(logps.shape, generator=noise)) * mask
                for name in ("old_logps", "ref_logps")
            }
            given["grpo_e2e.rewards"] = torch.tensor([1.0, 0.0, 0.0, 0.5, 0.25, 0.75])[:group]
        old, ref, rewards = (given[f"grpo_e2e.{k}"].to(logps.dtype) for k in ("old_logps", "ref_logps", "rewards"))
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        low, high = 1 - spec["epsilon_low"], 1 + spec["epsilon_high"]
        ratio, a = (logps - old).exp(), advantages[:, None]
        kl = (ref - logps).exp() - (ref - logps) - 1
        per_token = -torch.minimum(ratio * a, ratio.clamp(low, high) * a) + spec["beta"] * kl
        loss = ((per_token * mask).sum(1) / mask.sum(1)).mean()
        loss.backward()
        grads = self.gradients()
        clipped = (((ratio < low) & (a < 0)) | ((ratio > high) & (a > 0))) * mask
        out = {
            "rewards": rewards,
            "advantages": advantages,
            "completion_ids": completion,
            "completion_mask": mask,
            "old_logps": old,
            "ref_logps": ref,
            "logps": logps.detach(),
            "loss": loss.detach()[None],
            "kl_mean": ((kl * mask).sum() / mask.sum()).detach()[None],
            "clip_frac": (clipped.sum() / mask.sum())[None].to(logps.dtype),
            "grad_norm": torch.stack([g.norm() for g in grads.values()]).norm()[None],
        }
        out |= {f"grad.{name}": grad for name, grad in grads.items() if small_parameter(name, grad)}
        return {f"grpo_e2e.{name}": value for name, value in out.items()}


def small_parameter(name: str, tensor: torch.Tensor) -> bool:
    """The vectors of the first layer, the first vision block and the last norms: what `grpo_e2e.grad.*` keeps."""
    first = ".layers.0." in name or ".blocks.0." in name or ".ln_q." in name or name == "model.norm.weight"
    return tensor.dim() == 1 and first


def decoded(paths: list[str], root: Path) -> dict[str, torch.Tensor]:
    """`decoded.<path>`: RGB of the images whose decoders may differ (JPEG, lossy WebP), and of all kinds PIL converts."""
    import numpy
    from PIL import Image

    out = {}
    for path in dict.fromkeys(paths):
        with Image.open(root / path) as image:
            plain = image.format == "PNG" and image.mode == "RGB"
        if not plain:
            out[f"decoded.{path}"] = torch.from_numpy(numpy.array(load_image(str(root / path))))
    return out


def max_abs(a: torch.Tensor, b: torch.Tensor) -> float:
    worst = (a.double() - b.double()).abs().max().item() if a.numel() else 0.0
    return math.inf if math.isnan(worst) else worst
