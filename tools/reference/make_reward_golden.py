#!/usr/bin/env python3
"""Records what TRL's reward functions, and the published formulas of VLM-R1's, give.

    python tools/reference/make_reward_golden.py            # rewrites tests/golden/rewards.json

Needs trl (made with 1.16.0, and math-verify 0.9.0) for think_format, cosine, soft_overlong and repetition. The formulas of
length and iou (VLM-R1) are written down here from their definitions, in another form than in src/reward.
"""
import json
import math
import random
from pathlib import Path

from trl.rewards import (
    get_cosine_scaled_reward, get_repetition_penalty_reward, get_soft_overlong_punishment, think_format_reward
)

OUT = Path(__file__).resolve().parents[2] / "tests" / "golden" / "rewards.json"
RANDOM = random.Random(7)

THOUGHTS = [
    "<think>a</think>b", "<think>\na\n</think>\nb\n", "<think></think>", "<think>a", "a</think>b", "", "<think>",
    " <think>a</think>b", "\n<think>a</think>", "<think>a<think>b</think>", "<think>a</think>b<think>c</think>",
    "<think>a</think>\n<think>", "<think>a</think>b</think>", "<Think>a</Think>", "x<think>a</think>",
    "<think>\u2028a</think>\u2028<think>", "<think>ä\r\n</think>\r\n",
]


def think_format():
    scores = think_format_reward([[{"content": text}] for text in THOUGHTS])
    return [{"text": text, "score": score} for text, score in zip(THOUGHTS, scores)]


def soft_overlong():
    cases = []
    for most, cache in [(100, 20), (100, 100), (100, 0), (16, 5), (1, 1), (16384, 4096)]:
        function = get_soft_overlong_punishment(most, cache)
        lengths = sorted({0, 1, most - cache - 1, most - cache, most - cache + 1, most - 1, most, most + 1, 3 * most})
        for length in [n for n in lengths if n >= 0]:
            cases.append({"max_completion_len": most, "soft_punish_cache": cache, "length": length,
                          "score": function([[1] * length])[0]})
    return cases


def repetition():
    cases = []
    for n, penalty in [(1, -1.0), (2, -1.0), (3, -1.0), (3, -0.3), (6, -2.0), (3, 0.0)]:
        function = get_repetition_penalty_reward(ngram_size=n, max_penalty=penalty)
        texts = [[], [1], [1, 2], [1, 2, 3], [5] * 40, [1, 2, 3] * 9, list(range(30))]
        texts += [[RANDOM.randrange(k) for _ in range(RANDOM.randrange(60))] for k in (2, 3, 5, 50)]
        for ids in texts:
            cases.append({"n_grams": n, "max_penalty": penalty, "ids": ids, "score": function([ids])[0]})
    return cases


def between(start, end, progress):
    """From start to end along half a cosine; what is past the end stays there."""
    share = math.sin(min(progress, 1.0) * math.pi / 2) ** 2
    return (1 - share) * start + share * end


def cosine():
    cases = []
    for right in (True, False):
        for wrong, correct, most in [((0.0, -0.5), (0.5, 1.0), 1000), ((-1.0, -0.5), (0.0, 2.0), 7)]:
            function = get_cosine_scaled_reward(most, *wrong, *correct)
            for length in [0, 1, 3, most // 2, most - 1, most, most + 1, 5 * most]:
                text = r"\boxed{3}" if right else r"\boxed{4}"
                score = function([[{"content": text}]], ["3"], [[1] * length])[0]
                cases.append({"right": right, "min_value_wrong": wrong[0], "max_value_wrong": wrong[1],
                              "min_value_correct": correct[0], "max_value_correct": correct[1], "max_len": most,
                              "length": length, "score": score})
    return cases


def length():
    return [{"length": n, "score": between(1.0, 0.5, n / 1024)} for n in [0, 1, 100, 512, 777, 1023, 1024, 1025, 9999]]


def iou():
    """Boxes of whole numbers, by counting the unit squares in them."""
    squares = lambda b: {(x, y) for x in range(b[0], b[2]) for y in range(b[1], b[3])}
    cases = []
    for _ in range(40):
        boxes = [[RANDOM.randrange(12) for _ in range(4)] for _ in range(2)]
        if RANDOM.random() < 0.8:
            boxes = [[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in boxes]
        one, other = map(squares, boxes)
        score = len(one & other) / len(one | other) if one & other else 0.0
        cases.append({"answer": boxes[0], "solution": boxes[1], "score": score})
    return cases


tables = {f.__name__: f() for f in (think_format, soft_overlong, repetition, cosine, length, iou)}
OUT.write_text("{\n" + ",\n".join(
    f'"{name}": [\n' + ",\n".join(json.dumps(row, ensure_ascii=True) for row in rows) + "\n]"
    for name, rows in tables.items()) + "\n}\n")
