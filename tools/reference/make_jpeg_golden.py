"""Writes tests/golden/jpeg.bin: small JPEGs and the RGB that Pillow decodes from them (libjpeg-turbo, its defaults).

Run: python tools/reference/make_jpeg_golden.py   (made with pillow 13.0.0, libjpeg-turbo 3.2.0)
Little-endian: u32 count, then per case four u32 (bytes of the name, width, height, bytes of the file), name, file, RGB.
Noise shows every flaw of the chroma's interpolation, odd sides its edges. Where Pillow cannot write a variant, the
header of a file it wrote is changed: that gives some other picture, and Pillow decodes it all the same.
"""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

PATH = Path(__file__).resolve().parents[2] / "tests" / "golden" / "jpeg.bin"
RNG = np.random.default_rng(11)


def noise(width, height):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def shapes(width, height):
    y, x = np.mgrid[0:height, 0:width]
    picture = np.full((height, width, 3), 240, np.uint8)
    picture[(x - width * 0.8) ** 2 + (y - height * 0.7) ** 2 < width * height / 9] = (200, 20, 40)
    picture[x + y < width / 2] = (10, 60, 220)
    return Image.fromarray(picture)


def saved(image, **options):
    out = io.BytesIO()
    image.save(out, "JPEG", optimize=True, **options)
    return out.getvalue()


def sampled(data, factors):
    """`data` with the sampling factors of its frame header (one byte per component) replaced."""
    data = bytearray(data)
    at = 2
    while data[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    for component, factor in enumerate(factors):
        data[at + 11 + 3 * component] = factor
    return bytes(data)


def marked(data, transform=None, jfif=False):
    """`data`, a JFIF file, with or without its JFIF marker, and with an Adobe marker of this transform."""
    end = 4 + int.from_bytes(data[4:6], "big")
    adobe = b"" if transform is None else b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
    return data[: end if jfif else 2] + adobe + data[end:]


def files():
    cmyk = saved(noise(17, 13).convert("CMYK"), quality=85)
    at = cmyk.index(b"Adobe")
    return {
        "444": saved(noise(23, 17), quality=90, subsampling=0),
        "422": saved(noise(23, 17), quality=75, subsampling=1),
        "422_even": saved(noise(18, 22), quality=60, subsampling=1),
        "420": saved(noise(33, 17), quality=90, subsampling=2),
        "420_even": saved(noise(18, 34), quality=95, subsampling=2),
        "420_progressive": saved(noise(21, 19), quality=75, subsampling=2, progressive=True),
        "420_restarts": saved(noise(35, 19), quality=60, subsampling=2, restart_marker_blocks=2),
        "420_shapes": saved(shapes(39, 25), quality=75, subsampling=2),
        "440": sampled(saved(noise(32, 32), quality=60, subsampling=1), (0x12, 0x11, 0x11)),
        "411": sampled(saved(noise(32, 32), quality=60, subsampling=2), (0x41, 0x11, 0x11)),
        "grey": saved(noise(19, 21).convert("L"), quality=90),
        "rgb": saved(noise(17, 15), quality=80, keep_rgb=True),
        "adobe_rgb": marked(saved(shapes(23, 17), subsampling=0), 0),
        "adobe_ycc": marked(saved(shapes(23, 17), subsampling=0), 1),
        "jfif_before_adobe": marked(saved(shapes(23, 17), subsampling=0), 0, jfif=True),
        "unmarked": marked(saved(shapes(23, 17), subsampling=2)),
        "cmyk": cmyk,
        "ycck": cmyk[: at + 11] + b"\2" + cmyk[at + 12 :],
    }


def main():
    cases = files()
    out = struct.pack("<I", len(cases))
    for name, data in cases.items():
        image = Image.open(io.BytesIO(data)).convert("RGB")
        out += struct.pack("<4I", len(name), *image.size, len(data)) + name.encode() + data + image.tobytes()
    PATH.write_bytes(out)
    print(f"{PATH}: {len(out)} bytes")


if __name__ == "__main__":
    main()
