"""Writes tests/golden/resize_bicubic.bin: Pillow's bicubic resize of noise images.

Run: python tools/reference/make_resize_golden.py   (needs Pillow 13 or later, which chooses the order of the passes; made with 13.0.0)
Layout, little endian: u32 number of cases; per case u32 seed, height, width, new height, new width,
byte length; then the resized RGB bytes. The inputs are regenerated from the seed by `noise`.
"""

import struct
from pathlib import Path

from PIL import Image

CASES = [  # (height, width, new height, new width)
    (9, 11, 28, 28),  # enlarge both sides
    (61, 47, 28, 28),  # shrink both, horizontal pass first
    (53, 36, 31, 25),  # height loses exactly twice as many pixels: horizontal first
    (43, 35, 12, 20),  # a little more than twice: vertical first
    (33, 30, 28, 31),
    (40, 13, 28, 56),  # shrink one, enlarge the other: vertical first
    (13, 40, 56, 28),
    (28, 33, 28, 28),  # horizontal pass only
    (33, 28, 28, 28),  # vertical pass only
    (1, 1, 28, 28),
    (1, 97, 3, 28),
    (97, 1, 28, 2),
    (2, 3, 7, 5),
    (301, 5, 14, 5),  # strong shrink: wide support
    (7, 400, 7, 9),
    (56, 56, 28, 28),  # exactly 2:1
    (17, 19, 16, 18),  # almost unchanged
    (5, 5, 1, 1),
]


def noise(seed: int, length: int) -> bytes:
    out = bytearray()
    state = seed
    for i in range(length):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        value = state >> 24
        if i % 3 == 0:
            value = 0 if value < 128 else 255
        out.append(value)
    return bytes(out)


def main() -> None:
    out = bytearray(struct.pack("<I", len(CASES)))
    for seed, (height, width, new_height, new_width) in enumerate(CASES, start=1):
        image = Image.frombytes("RGB", (width, height), noise(seed, height * width * 3))
        resized = image.resize((new_width, new_height), Image.Resampling.BICUBIC).tobytes()
        out += struct.pack("<6I", seed, height, width, new_height, new_width, len(resized)) + resized
    path = Path(__file__).resolve().parents[2] / "tests" / "golden" / "resize_bicubic.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out)
    print(f"{path}: {len(CASES)} cases, {len(out)} bytes")


if __name__ == "__main__":
    main()
