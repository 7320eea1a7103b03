"""Decoding and squashing to 224 x 224 by other libraries: how fast, and how far from Pillow's pixels.

    pip install simplejpeg opencv-python-headless    # for this benchmark only; what is missing is left out
    python benchmarks/decoders.py

A decoder may replace Pillow if no value of a squashed picture is off by more than 1 of 255. Pictures are synthetic:
photo-like ones of several sizes, subsamplings and kinds, and hard ones (noise, black and white blocks, odd shapes).
Milliseconds are CPU time for a 640 x 480 JPEG, the best of five rounds.
"""

import argparse
import importlib
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from loader_sets import picture
from PIL import Image

SIDE, EACH = 224, 17
KINDS: dict[str, dict[str, Any]] = {
    "4:2:0": {},
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "progressive": {"progressive": True},
    "large": {"size": (1024, 768)},
    "odd": {"size": (1001, 767)},
    "huge": {"size": (2000, 1500)},
    "small": {"size": (300, 200)},
    "enlarged": {"size": (150, 100)},
    "same size": {"size": (224, 224)},
    "grey": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
    "PNG": {"format": "PNG"},
}
Array = np.ndarray


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    photos = [picture(number, **kind) for kind in KINDS.values() for number in range(EACH)]
    hard = [_hard(number) for number in range(400)]
    timed = [picture(number) for number in range(EACH)]
    arrays = [decode_pillow(content) for content in timed]
    print(f"{len(photos)} photo-like and {len(hard)} hard pictures, Pillow {Image.__version__}\n")
    print("| decoder | resizer | decode, ms | resize, ms | largest deviation: photo-like | hard |")
    print("|---|---|---:|---:|---:|---:|")
    for decoder, resizer in [("Pillow", r) for r in RESIZERS] + [(d, "Pillow") for d in DECODERS if d != "Pillow"]:
        decode, resize = DECODERS[decoder], RESIZERS[resizer]
        try:
            off = [max(_deviation(content, decode, resize) for content in some) for some in (photos, hard)]
        except ImportError as missing:
            print(f"| {decoder} | {resizer} | {missing.name} is not installed | | | |")
            continue
        print(
            f"| {decoder} | {resizer} | {_milliseconds(decode, timed):.2f} | {_milliseconds(resize, arrays):.2f}"
            f" | {off[0]} | {off[1]} |",
            flush=True,
        )


def _hard(number: int) -> bytes:
    """Noise, or blocks as in diagrams, 30 to 600 pixels wide and high."""
    rng = np.random.default_rng(number)
    width, height = (int(n) for n in rng.integers(30, 600, 2))
    if number % 2:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    else:
        coarse = rng.integers(0, 2, (height // 9 + 1, width // 9 + 1, 1), dtype=np.uint8) * np.uint8(255)
        pixels = coarse.repeat(9, 0).repeat(9, 1).repeat(3, 2)[:height, :width]
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _deviation(content: bytes, decode: Callable[[bytes], Array], resize: Callable[[Array], Array]) -> int:
    reference = resize_pillow(decode_pillow(content)).astype(int)
    return int(np.abs(resize(decode(content)).astype(int) - reference).max())


def _milliseconds(work: Callable, items: list) -> float:
    rounds = []
    for _ in range(5):
        start = time.process_time()
        for item in items:
            work(item)
        rounds.append(time.process_time() - start)
    return min(rounds) / len(items) * 1000


def decode_pillow(content: bytes) -> Array:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def decode_draft(content: bytes) -> Array:
    """Pillow lets libjpeg reduce the picture while it decodes."""
    image = Image.open(io.BytesIO(content))
    image.draft("RGB", (SIDE, SIDE))
    return np.asarray(image.convert("RGB"))


def decode_simplejpeg(content: bytes) -> Array:
    simplejpeg = importlib.import_module("simplejpeg")
    return simplejpeg.decode_jpeg(content, "RGB") if simplejpeg.is_jpeg(content) else decode_pillow(content)


def decode_opencv(content: bytes) -> Array:
    cv2 = importlib.import_module("cv2")
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def resize_pillow(pixels: Array, **more: Any) -> Array:
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC, **more))


def resize_gap(pixels: Array) -> Array:
    """Pillow halves first, as often as this leaves three times the size."""
    return resize_pillow(pixels, reducing_gap=3.0)


def resize_torch(pixels: Array) -> Array:
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(image, (SIDE, SIDE), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def resize_opencv(pixels: Array) -> Array:
    cv2 = importlib.import_module("cv2")
    return cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)


DECODERS: dict[str, Callable[[bytes], Array]] = {
    "Pillow": decode_pillow,
    "Pillow, draft": decode_draft,
    "simplejpeg": decode_simplejpeg,
    "OpenCV": decode_opencv,
}
RESIZERS: dict[str, Callable[[Array], Array]] = {
    "Pillow": resize_pillow,
    "Pillow, reducing_gap": resize_gap,
    "torch, uint8 with antialias": resize_torch,
    "OpenCV, cubic": resize_opencv,
}

if __name__ == "__main__":
    main()
