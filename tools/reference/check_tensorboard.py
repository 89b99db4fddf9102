#!/usr/bin/env python3
"""Reads the event files of a run with TensorBoard's own reader and compares them with the run's JSON lines.

    check_tensorboard.py RUN [RUN ...]

Every number of metrics.jsonl has to stand under train/KEY, every number of eval_metrics.jsonl under eval/KEY without its
`eval_`, at the row's step + 1, once, equal in float32, and nothing else beside them. Texts and images are counted, and
each image is decoded. Exits 1 at the first run that differs.
"""

import argparse
import io
import json
import math
import struct
import sys
from pathlib import Path

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def float32(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0]


def expected(run: Path) -> dict[tuple[str, int], float]:
    """Each number by tag and step."""
    points = {}
    for row in rows(run / "metrics.jsonl") + rows(run / "eval_metrics.jsonl"):
        for key, value in row.items():
            if key == "step" or value is None:
                continue
            tag = f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"
            points[tag, row["step"] + 1] = float32(value)
    return points


def check(run: Path) -> str | None:
    """What is wrong with a run; prints a line where nothing is."""
    folders = {path.parent for path in run.glob("runs/*/events.out.tfevents.*")}
    if len(folders) != 1:
        return f"{len(folders)} folders with event files under runs"
    reader = EventAccumulator(str(folders.pop()), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    reader.Reload()
    found: dict[tuple[str, int], float] = {}
    for tag in reader.Tags()["scalars"]:
        for event in reader.Scalars(tag):
            if (tag, event.step) in found:
                return f"{tag} has step {event.step} twice"
            found[tag, event.step] = event.value
    want = expected(run)
    for point in sorted(want.keys() | found.keys()):
        a, b = want.get(point), found.get(point)
        if a is None or b is None or not (a == b or math.isnan(a) and math.isnan(b)):
            return f"{point[0]} at step {point[1]}: {a} in the rows, {b} in the event files"
    texts = {tag: reader.Tensors(tag) for tag in reader.Tags()["tensors"]}
    for tag, events in texts.items():
        if reader.SummaryMetadata(tag).plugin_data.plugin_name != "text":
            return f"{tag} is no text"
        for event in events:
            event.tensor_proto.string_val[0].decode()
    images = [(tag, event) for tag in reader.Tags()["images"] for event in reader.Images(tag)]
    for tag, event in images:
        size = Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB").size
        if size != (event.width, event.height):
            return f"{tag} at step {event.step} is {event.width} x {event.height}, its PNG {size}"
    count = sum(len(events) for events in texts.values())
    print(f"{run}: {len(found)} points of {len(reader.Tags()['scalars'])} curves, {count} texts, {len(images)} images")
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    for run in parser.parse_args().runs:
        if wrong := check(run):
            sys.exit(f"{run}: {wrong}")


if __name__ == "__main__":
    main()
