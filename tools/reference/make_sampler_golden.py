"""Writes tests/golden/sampler.json: next-token distributions as transformers computes them.

Each case is one row of logits, what came before it, and generation options. The processors are
the ones `model.generate` itself would build (`GenerationMixin._get_logits_processor`), in its
order; the never-sampled tokens go through its `suppress_tokens`. Made with torch 2.15.0 and
transformers 5.23.0.

    python tools/reference/make_sampler_golden.py tests/golden/sampler.json

Cases whose kept set hangs on rounding (a cumulative probability within 2e-6 of the top_p limit,
a probability within 1e-5, relative, of the min_p limit, a tie across the top_p limit) are drawn
again: torch's sort is not stable, so such a set is not defined by transformers itself. Ties under
top_k and min_p are well defined and are kept.
"""

import json
import random
import sys

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TopPLogitsWarper,
)

MODEL = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
)


def draw_case(rng, number):
    """One random case; every option is on in a third to a half of them."""
    vocab = rng.choice([30, 33, 47, 64, 101, 200]) if number % 6 == 0 else rng.randint(30, 60)
    spread = rng.choice([0.3, 1.0, 1.0, 2.0, 6.0])
    # Few decimals keep the file small; every tenth case has many equal logits.
    decimals = 0 if number % 10 == 9 else 4
    logits = [round(rng.gauss(0.0, spread), decimals) for _ in range(vocab)]
    if number % 12 == 5:
        for _ in range(vocab // 4):
            logits[rng.randrange(vocab)] = None  # -inf
    image_pad = vocab - 1
    prompt = [rng.randrange(vocab) for _ in range(rng.randint(1, 12))] + [image_pad] * rng.randint(0, 6)
    if number % 7 == 3:
        prompt.append(vocab + 5)  # an id beyond the head's rows
    output = [rng.randrange(vocab) for _ in range(rng.randint(0, 12))]
    eos = rng.sample(range(vocab), rng.randint(1, 2))
    if number % 2 == 0:
        # What must not be sampled is what the row likes best, or a missing ban would hardly show.
        logits[eos[0]] = round(2.5 * spread, 1)
        logits[image_pad] = round(2.6 * spread, 1)
    on = lambda: rng.random() < 0.4
    return {
        "logits": logits,
        "prompt": prompt,
        "output": output,
        "eos": eos,
        "banned": [image_pad, vocab - 2] if on() else [],
        "do_sample": number % 8 != 7,
        "temperature": rng.choice([0.3, 0.7, 0.9, 1.3, 2.0]) if on() else 1.0,
        "top_k": rng.choice([1, 3, 5, 10, 20, 20, 1000]) if on() else 0,
        "top_p": rng.choice([0.3, 0.6, 0.8, 0.9, 0.9, 0.95, 0.99]) if on() else 1.0,
        "min_p": rng.choice([0.01, 0.02, 0.05, 0.05, 0.1, 0.1, 0.2, 1.0]) if on() else 0.0,
        "repetition_penalty": rng.choice([0.8, 1.05, 1.3, 2.0]) if on() else 1.0,
        "min_new_tokens": rng.choice([1, 4, 8, 20]) if on() else 0,
    }


def processed_scores(case):
    """The scores that generate would draw from, or None if the case hangs on rounding."""
    logits = [float("-inf") if x is None else x for x in case["logits"]]
    config = GenerationConfig(
        do_sample=case["do_sample"],
        temperature=case["temperature"],
        top_k=case["top_k"],
        top_p=case["top_p"],
        min_p=case["min_p"] if case["min_p"] > 0.0 else None,
        repetition_penalty=case["repetition_penalty"],
        min_new_tokens=case["min_new_tokens"],
        suppress_tokens=case["banned"] or None,
        eos_token_id=case["eos"],
        pad_token_id=0,
    )
    MODEL._prepare_special_tokens(config, kwargs_has_attention_mask=True, device="cpu")
    processors = MODEL._get_logits_processor(
        config,
        input_ids_seq_length=len(case["prompt"]),
        logits_processor=LogitsProcessorList(),
        device="cpu",
        model_kwargs={},
    )
    ids = torch.tensor([case["prompt"] + case["output"]])
    scores = torch.tensor([logits], dtype=torch.float32)
    for processor in processors:
        if isinstance(processor, TopPLogitsWarper):
            ordered = torch.sort(scores, descending=False).values[0]
            cumulative = ordered.double().softmax(-1).cumsum(-1)
            limit = 1.0 - processor.top_p
            if (cumulative - limit).abs().min() < 2e-6:
                return None
            cut = int((cumulative <= limit).sum())
            if 0 < cut < len(ordered) and ordered[cut] == ordered[cut - 1]:
                return None
        if isinstance(processor, MinPLogitsWarper):
            ratio = (scores[0].double() - scores.max().double()).exp() / processor.min_p
            if ((ratio != 1.0) & ((ratio - 1.0).abs() < 1e-5)).any():
                return None
        scores = processor(ids, scores)
    return scores[0]


def main(path):
    rng = random.Random(20250211)
    cases = []
    while len(cases) < 64:
        case = draw_case(rng, len(cases))
        scores = processed_scores(case)
        if scores is None or not torch.isfinite(scores).any():
            continue
        probs = scores.softmax(-1)
        kept = torch.nonzero(torch.isfinite(scores)).flatten().tolist()
        case["kept"] = kept
        case["probs"] = [float(f"{probs[i].item():.8g}") for i in kept]
        case["argmax"] = int(scores.argmax())
        cases.append(case)
    with open(path, "w", encoding="utf-8") as file:
        file.write("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")
    sampled = [c for c in cases if c["do_sample"]]
    print(f"{len(cases)} cases, {len(sampled)} sampled; kept sizes {sorted(len(c['kept']) for c in cases)}")


if __name__ == "__main__":
    main(sys.argv[1])
