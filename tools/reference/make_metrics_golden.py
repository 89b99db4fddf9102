#!/usr/bin/env python3
"""Records the names of the metrics that TRL's trainers log.

    python tools/reference/make_metrics_golden.py            # rewrites tests/golden/trl_metrics.json

Needs torch, transformers and trl (made with trl 1.16.0). Two steps each of GRPOTrainer (with a KL weight, so that it has a
reference) and SFTTrainer, with an evaluation, of a model of a few numbers; what their logs hold is written down.
"""
import json
import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

OUT = Path(__file__).resolve().parents[2] / "tests" / "golden" / "trl_metrics.json"
SCRATCH = Path(tempfile.mkdtemp())


def model():
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "a": 2, "b": 3}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>").save_pretrained(SCRATCH / "model")
    config = Qwen2Config(vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                         num_key_value_heads=1, max_position_embeddings=64)
    Qwen2ForCausalLM(config).save_pretrained(SCRATCH / "model")
    return str(SCRATCH / "model")


def accuracy(completions, **_):
    return [float(len(completion) % 2) for completion in completions]


def names(trainer):
    """Keys of the logs of steps and of evaluations; not of the summary at the end."""
    trainer.train()
    step, evaluation = set(), set()
    for row in trainer.state.log_history:
        if "train_runtime" not in row:
            (evaluation if any(key.startswith("eval_") for key in row) else step).update(row)
    return {"step": sorted(step), "evaluation": sorted(evaluation)}


path = model()
common = dict(output_dir=str(SCRATCH / "out"), max_steps=2, logging_steps=1, eval_strategy="steps", eval_steps=1, report_to=[],
              use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True, save_strategy="no")
grpo = GRPOTrainer(
    model=path, reward_funcs=accuracy,
    args=GRPOConfig(beta=0.04, num_generations=2, per_device_train_batch_size=2, per_device_eval_batch_size=2,
                    max_completion_length=4, **common),
    train_dataset=Dataset.from_list([{"prompt": "a b"}] * 8), eval_dataset=Dataset.from_list([{"prompt": "b a"}] * 2),
)
sft = SFTTrainer(
    model=path, args=SFTConfig(per_device_train_batch_size=2, **common),
    train_dataset=Dataset.from_list([{"prompt": "a b", "completion": " b"}] * 8),
    eval_dataset=Dataset.from_list([{"prompt": "a", "completion": " b"}] * 2),
)
OUT.write_text(json.dumps({"grpo": names(grpo), "sft": names(sft)}, indent=1) + "\n")
