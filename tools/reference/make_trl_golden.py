#!/usr/bin/env python3
"""Records what TRL, torch and transformers compute for GRPO losses, advantages, AdamW and learning rates.

    python tools/reference/make_trl_golden.py            # rewrites tests/golden/{trl_loss,trl_advantages,torch_optim}.json

Needs torch, transformers and trl (made with trl 1.16.0). Every case runs TRL's own methods
(`GRPOTrainer._compute_loss`, `GRPOTrainer._generate_and_score_completions`) on a trainer built from a
`GRPOConfig` with the case's options; only the model's log-probabilities, the generated tokens and the
rewards are replaced by recorded ones. Losses are computed in float64 (and once more in float32).
"""
import json
import math
import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, get_scheduler
from trl import GRPOConfig, GRPOTrainer

transformers.utils.logging.set_verbosity_error()
OUT = Path(__file__).resolve().parents[2] / "tests" / "golden"
SCRATCH = Path(tempfile.mkdtemp())
MAX_COMPLETION_LENGTH = 16


def significant(x, digits):
    """Python numbers with that many significant digits; NaN becomes None."""
    if isinstance(x, (list, tuple)):
        return [significant(v, digits) for v in x]
    return None if math.isnan(x) else float(f"{x:.{digits}g}")


def tiny_model():
    """A checkpoint that lets a trainer (and its reference model) be built; its outputs are never used."""
    vocab = {"<pad>": 0, "<eos>": 1, "a": 2, "b": 3}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    config = Qwen2Config(vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=64)
    Qwen2ForCausalLM(config).save_pretrained(SCRATCH / "model")
    tokenizer.save_pretrained(SCRATCH / "model")
    return tokenizer


TOKENIZER = tiny_model()


def trainer(completions, **options):
    args = GRPOConfig(output_dir=str(SCRATCH / "out"), per_device_train_batch_size=completions,
                      max_completion_length=MAX_COMPLETION_LENGTH, report_to=[], use_cpu=True, bf16=False,
                      gradient_checkpointing=False, disable_tqdm=True, seed=0, **options)
    built = GRPOTrainer(model=str(SCRATCH / "model"), reward_funcs=lambda completions, **_: [0.0] * len(completions),
                        args=args, train_dataset=Dataset.from_list([{"prompt": "a b"}] * 8),
                        processing_class=TOKENIZER)
    built.model.train()
    return built


# ---------------------------------------------------------------------------------------------- losses

def loss_inputs():
    """Ragged batches: log-probs of 3 decimals (short in JSON), advantages that f32 holds exactly."""
    rng = np.random.default_rng(20250316)
    shapes = {
        # name: (lengths, advantages, holes as (sequence, token), wholly masked sequences)
        "four": ([5, 1, 7, 3], [1.25, -0.75, 0.5, -0.875], [(0, 2), (2, 0), (2, 5)], []),
        "masked": ([4, 3, 2, 6], [0.75, 1.125, 0.0, -1.75], [(3, 5)], [1]),
    }
    inputs = {}
    for name, (lengths, advantages, holes, gone) in shapes.items():
        total = sum(lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        logp = -rng.gamma(2.0, 0.8, total)
        mask = np.ones(total, bool)
        for sequence, token in holes:
            mask[offsets[sequence] + token] = False
        for sequence in gone:
            mask[offsets[sequence]:offsets[sequence + 1]] = False
        inputs[name] = {
            "lengths": lengths,
            "mask": mask.tolist(),
            "advantages": advantages,
            "logp": np.round(logp, 3).tolist(),
            "old_logp": np.round(logp + rng.normal(0, 0.4, total), 3).tolist(),
            "ref_logp": np.round(logp + rng.normal(0, 0.6, total), 3).tolist(),
        }
    return inputs


def padded(flat, lengths, rows, dtype, fill):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    width = max(lengths[i] for i in rows)
    out = torch.full((len(rows), width), fill, dtype=dtype)
    for r, i in enumerate(rows):
        out[r, :lengths[i]] = torch.tensor(flat[offsets[i]:offsets[i + 1]], dtype=dtype)
    return out


def run_loss(case, data, dtype):
    """The loss summed over micro-batches, its gradient by every log-prob, and TRL's metrics."""
    options = {k: case[k] for k in ("loss_type", "importance_sampling_level", "epsilon", "epsilon_high", "delta", "beta")}
    micro_batches = case["micro_batches"]
    per_batch = len(micro_batches[0])
    built = trainer(per_batch, num_generations=2, gradient_accumulation_steps=len(micro_batches),
                    steps_per_generation=case["steps_per_generation"],
                    use_bias_correction_kl=case["use_bias_correction_kl"], **options)
    built.current_gradient_accumulation_steps = len(micro_batches)
    lengths, mask = data["lengths"], data["mask"]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    loss, gradient = 0.0, [0.0] * sum(lengths)
    for rows in micro_batches:
        logp = padded(data["logp"], lengths, rows, dtype, -0.5).requires_grad_()
        built._get_per_token_logps_and_entropies = lambda *_, **__: (logp, torch.zeros_like(logp), None)
        row_mask = padded(mask, lengths, rows, torch.long, 0)
        batch = {
            "prompt_ids": torch.full((len(rows), 1), 2), "prompt_mask": torch.ones(len(rows), 1, dtype=torch.long),
            "completion_ids": torch.full(logp.shape, 2), "completion_mask": row_mask,
            "advantages": torch.tensor([data["advantages"][i] for i in rows], dtype=dtype),
            "num_items_in_batch": torch.tensor(case["num_items_in_batch"]),
        }
        if case["old"]:
            batch["old_per_token_logps"] = padded(data["old_logp"], lengths, rows, dtype, -0.75)
        if case["beta"] != 0:
            batch["ref_per_token_logps"] = padded(data["ref_logp"], lengths, rows, dtype, -1.0)
        part = built._compute_loss(built.model, batch)
        part.backward()
        loss += part.item()
        for r, i in enumerate(rows):
            gradient[offsets[i]:offsets[i + 1]] = logp.grad[r, :lengths[i]].tolist()
    return loss, gradient, built._metrics["train"]


def loss_cases(inputs):
    base = dict(inputs="four", old=True, epsilon=0.2, epsilon_high=None, delta=None, beta=0.0,
                use_bias_correction_kl=False, micro_batches=[[0, 1, 2, 3]], steps_per_generation=1)
    for level in ("token", "sequence"):
        for loss_type in ("grpo", "dapo", "bnpo", "dr_grpo"):
            case = dict(base, loss_type=loss_type, importance_sampling_level=level)
            kl = dict(beta=0.04)
            yield dict(case)
            yield dict(case, **kl)
            yield dict(case, **kl, use_bias_correction_kl=True)
            # Two-sided clipping, asymmetric; delta above and inside the clip range.
            yield dict(case, **kl, epsilon=0.1, epsilon_high=0.28, delta=1.3, use_bias_correction_kl=True)
            yield dict(case, epsilon=0.3, epsilon_high=0.5, delta=1.2)
            # On-policy: no old log-probs.
            yield dict(case, **kl, old=False)
            yield dict(case, **kl, old=False, use_bias_correction_kl=True)
            # A completion whose tokens are all masked, and one without advantage.
            yield dict(case, **kl, inputs="masked", use_bias_correction_kl=True)
            # Gradient accumulation.
            two = dict(micro_batches=[[0, 1], [2, 3]], steps_per_generation=2)
            yield dict(case, **kl, **two, use_bias_correction_kl=True)
            yield dict(case, **kl, **two, inputs="masked")
    # A generation batch of two windows: TRL scales its token count to one window.
    yield dict(base, loss_type="dapo", importance_sampling_level="token", beta=0.04, num_items_in_batch=40,
               micro_batches=[[0, 1], [2, 3]], steps_per_generation=4)


def make_losses():
    inputs, cases = loss_inputs(), []
    for case in loss_cases(inputs):
        data = inputs[case["inputs"]]
        case.setdefault("num_items_in_batch", sum(data["mask"]))
        loss, gradient, metrics = run_loss(case, data, torch.float64)
        loss_f32, _, _ = run_loss(case, data, torch.float32)
        assert abs(loss - loss_f32) < 1e-6, (case, loss, loss_f32)
        recorded = {}
        if len(case["micro_batches"]) == 1:  # TRL averages metrics over micro-batches without weights
            recorded = {name: significant(metrics[name][0], 12) for name in
                        ("kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean",
                         "clip_ratio/low_min", "clip_ratio/high_max") if name in metrics}
        cases.append(dict(case, loss=significant(loss, 14), loss_f32=significant(loss_f32, 9),
                          dlogp=significant(gradient, 12), metrics=recorded))
    return {"max_completion_length": MAX_COMPLETION_LENGTH, "inputs": inputs, "cases": cases}


# ------------------------------------------------------------------------------------------ advantages

def make_advantages():
    rewards = {
        "binary": [1.0, 0.0, 0.0, 1.0, 2.0, 1.0, 2.0, 2.0],
        "graded": [0.25, 1.75, -0.5, 0.125, 3.0, 2.5, 0.0, 1.0],
        "one constant group": [1.0, 1.0, 1.0, 1.0, 0.0, 2.0, 1.0, 1.0],
        "one unscored": [1.0, None, 0.0, 0.0, 2.0, 1.0, 0.5, 0.0],
        "one group unscored": [None, None, None, None, 2.0, 1.0, 0.5, 0.0],
        "one scored in a group": [None, None, 1.5, None, 2.0, 1.0, 0.5, 0.0],
    }
    cases = []
    for scale in ("group", "batch", "none"):
        built = trainer(8, num_generations=4, scale_rewards=scale, beta=0.0)
        completions = [[2, 1]] * 8
        built._generate = lambda prompts: ([[2]] * 8, completions, None, ["a"] * 8, None, {}, None, None)
        for name, values in rewards.items():
            scored = torch.tensor([[float("nan") if r is None else r] for r in values])
            built._calculate_rewards = lambda *_, **__: scored
            built._metrics["train"].clear()
            output = built._generate_and_score_completions([{"prompt": "a b"}] * 8)
            metrics = built._metrics["train"]
            cases.append({
                "name": f"{name}, {scale}", "scale_rewards": scale, "num_generations": 4, "rewards": values,
                "advantages": significant(output["advantages"].tolist(), 9),
                **{key: significant(metrics[key][0], 9) for key in ("reward", "reward_std", "frac_reward_zero_std")},
            })
    return cases


# ------------------------------------------------------------------------------------------- optimiser

def make_optim():
    rng = np.random.default_rng(7)
    shapes, decay = [(3, 4), (5,), (2, 3)], [True, False, True]
    runs = []
    for options in (dict(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_grad_norm=1.0),
                    dict(betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, max_grad_norm=0.5)):
        options = dict(options)
        max_grad_norm = options.pop("max_grad_norm")
        start = [np.round(rng.normal(0, 1, shape), 3).astype(np.float32) for shape in shapes]
        params = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in start]
        groups = [{"params": [p], "weight_decay": options["weight_decay"] if d else 0.0} for p, d in zip(params, decay)]
        adamw = torch.optim.AdamW(groups, lr=0.01, betas=options["betas"], eps=options["eps"], foreach=False)
        scheduler = get_scheduler("linear", adamw, num_warmup_steps=2, num_training_steps=8)
        steps = []
        for step in range(5):
            # The first norm is far above the limit, the last below it.
            grads = [np.round(rng.normal(0, [3, 1, 1, 0.1, 0.02][step], shape), 4).astype(np.float32) for shape in shapes]
            for p, g in zip(params, grads):
                p.grad = torch.from_numpy(g.copy())
            norm = torch.nn.utils.clip_grad_norm_(params, max_grad_norm)
            rate = scheduler.get_last_lr()[0]
            adamw.step()
            scheduler.step()
            steps.append({"learning_rate": rate, "grad_norm": significant(norm.item(), 9),
                          "grads": [significant(g.ravel().tolist(), 9) for g in grads],
                          "params": [significant(p.detach().ravel().tolist(), 9) for p in params]})
        runs.append({"beta1": options["betas"][0], "beta2": options["betas"][1], "epsilon": options["eps"],
                     "weight_decay": options["weight_decay"], "max_grad_norm": max_grad_norm, "decay": decay,
                     "start": [significant(p.ravel().tolist(), 9) for p in start], "steps": steps})
    schedules = []
    for kind in ("linear", "cosine", "constant", "constant_with_warmup"):
        for warmup, total in ((0, 7), (3, 11), (5, 5)):
            adamw = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-5)
            scheduler = get_scheduler(kind, adamw, num_warmup_steps=warmup, num_training_steps=total)
            rates = []
            for _ in range(total + 1):
                rates.append(scheduler.get_last_lr()[0])
                adamw.step()
                scheduler.step()
            schedules.append({"lr_scheduler_type": kind, "learning_rate": 2e-5, "warmup_steps": warmup,
                              "total_steps": total, "rates": significant(rates, 16)})
    return {"adamw": runs, "schedules": schedules}


def write(name, value):
    """One line per case: readable in a diff, small in bytes."""
    lists = value if isinstance(value, list) else None
    if lists is not None:
        text = "[\n" + ",\n".join(json.dumps(v) for v in lists) + "\n]\n"
    else:
        parts = []
        for key, part in value.items():
            if isinstance(part, list):
                parts.append(f"{json.dumps(key)}: [\n" + ",\n".join(json.dumps(v) for v in part) + "\n]")
            else:
                parts.append(f"{json.dumps(key)}: {json.dumps(part)}")
        text = "{\n" + ",\n".join(parts) + "\n}\n"
    (OUT / name).write_text(text)
    print(f"{name}: {len(text)} bytes")


if __name__ == "__main__":
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    write("torch_optim.json", make_optim())
    write("trl_advantages.json", make_advantages())
    write("trl_loss.json", make_losses())
