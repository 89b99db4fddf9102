#!/usr/bin/env python3
"""Where the time and the memory of a GRPO-D step go: step.py METRICS.jsonl

Of the last step of a run's `metrics.jsonl`, which the device's start-up does not touch: its wall time by phase, tokens a second, and the most
device memory that each purpose held at once. Needs nothing but Python.
"""

import json
import sys
from pathlib import Path


def part(row: dict, prefix: str) -> dict[str, float]:
    return {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix) and value is not None}


def main() -> int:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines() if line]
    if not rows:
        print(f"{sys.argv[1]}: no step", file=sys.stderr)
        return 1
    row, earlier = rows[-1], rows[-2] if len(rows) > 1 else {}
    total = row["step_time"]
    print(f"STEP {len(rows)} of {len(rows)}: {total:.3f} s")
    phases = part(row, "step_time/")
    for name, seconds in [*phases.items(), ("else", total - sum(phases.values()))]:
        print(f"STEP   {name:10} {seconds:8.3f} s  {100 * seconds / total:5.1f} %")
    tokens = row.get("num_tokens", 0) - earlier.get("num_tokens", 0)
    length = row.get("completions/mean_length")
    print(f"STEP {tokens:.0f} tokens as TRL counts them, {tokens / total:.0f} a second; completions of {length} tokens on average")
    memory = part(row, "memory/")
    for name, size in memory.items():
        print(f"STEP   {name:12} {size / 2**30:8.2f} GiB at most")
    if memory:
        print(f"STEP {sum(memory.values()) / 2**30:.2f} GiB if all were at their most at once")
    else:
        print("STEP no memory: the step did not run on a GPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())
