"""What the samples of a data set are, as hashes: to find one that stands in another data set, too.

    OUT/content/*.json     of every shard, by its checksum: computed once, however many tasks of an array ask

Two samples are the same if their picture, question and choices are, or, without a picture, question, choices and
context. Pictures are the same if their decoded pixels are; of each there is a difference hash as well (64 bits: whether
each pixel of a 9 x 8 copy in grey is darker than its neighbour), by which those that are nearly the same are found.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dsmemvp.atomic_files import replace_file
from dsmemvp.data.images import decoded
from dsmemvp.data.manifest import Manifest
from dsmemvp.data.order import Place
from dsmemvp.data.sample import BadSample, SampleError, read_sample
from dsmemvp.data.stream import Reader
from dsmemvp.evaluation.scores import kind_of

VERSION = 2
"""Counts up when samples are hashed otherwise."""
NEAR = 2
"""Bits in which the difference hashes of two pictures may differ that are nearly the same."""
ROWS = 4096
"""Pictures whose hashes are compared at a time."""
BITS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


@dataclass
class Content:
    """Hashes are hexadecimal."""

    samples: dict[str, str] = field(default_factory=dict)
    """What a sample is -> where it lies; the first one of several."""
    pictures: dict[str, int] = field(default_factory=dict)
    """Pixels -> difference hash."""
    captions: int = 0
    """Samples with a caption."""
    kinds: set[str] = field(default_factory=set)
    """By what they are scored (evaluation/scores.py)."""
    damaged: str = ""
    """Where the first sample is that cannot be read, and why; empty if all can."""


def content_of(
    manifests: Sequence[Manifest],
    max_pixels: int,
    kept: Path,
    begin: float = 0.0,
    poll: Callable[[], object] = lambda: None,
) -> Content:
    """`kept` is the folder of what was computed before. `begin`: the part of the shards, 0 to 1, that is left to others
    who compute at the same time; what is then still missing is computed at the end. `poll` is called for every sample
    that is hashed. Raises OSError."""
    files = [
        (manifest, shard, kept / _name(manifest, shard, max_pixels))
        for manifest in manifests
        for shard in range(len(manifest.shards))
    ]
    kept.mkdir(parents=True, exist_ok=True)
    first = int(begin * len(files))
    for manifest, shard, file in files[first:] + files[:first]:
        if _read(file) is None:
            replace_file(file, json.dumps(_hashed(manifest, shard, max_pixels, poll)).encode(), shared=True)
    content = Content()
    for manifest, shard, file in files:
        own = _read(file)
        if own is None:
            raise OSError(f"{file} was written just now and cannot be read")
        for digest, key in own["samples"]:
            content.samples.setdefault(digest, f"{manifest.path(shard)}, sample {key}")
        content.pictures |= own["pictures"]
        content.captions += own["captions"]
        content.kinds |= set(own["kinds"])
        content.damaged = content.damaged or own["damaged"]
    return content


def near_duplicates(tested: Sequence[int], trained: Sequence[int]) -> int:
    """How many of `tested` have one of `trained` within NEAR bits."""
    if not tested or not trained:
        return 0
    a, b = (np.array(hashes, dtype=np.uint64).view(np.uint8).reshape(-1, 8) for hashes in (tested, trained))
    near = np.zeros(len(a), dtype=bool)
    for start in range(0, len(b), ROWS):
        for i in range(0, len(a), 256):
            apart = BITS[a[i : i + 256, None] ^ b[None, start : start + ROWS]].sum(-1, dtype=np.uint16)
            near[i : i + 256] |= (apart <= NEAR).any(1)
    return int(near.sum())


def _name(manifest: Manifest, shard: int, max_pixels: int) -> str:
    known = manifest.shards[shard]
    return hashlib.sha256(f"{VERSION} {max_pixels} {known.bytes} {known.sha256}".encode()).hexdigest()[:32] + ".json"


def _read(file: Path) -> dict[str, Any] | None:
    """None if it is not there, or was damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        pairs = all(len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in found["samples"])
        known = all(0 <= bits < 2**64 for bits in found["pictures"].values())
        rest = isinstance(found["kinds"], list) and isinstance(found["damaged"], str) and found["captions"] >= 0
        return found if pairs and known and rest else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _hashed(manifest: Manifest, shard: int, max_pixels: int, poll: Callable[[], object]) -> dict[str, Any]:
    samples: list[tuple[str, str]] = []
    pictures: dict[str, int] = {}
    captions, kinds, damaged = 0, set(), ""
    reader = Reader([manifest], indexes=1)
    for place, encoded in reader.read(Place(0, shard, i) for i in range(manifest.counts[shard])).items():
        poll()
        picture = ""
        try:
            if isinstance(encoded, BadSample):
                raise encoded.error
            sample = read_sample(encoded)
            if sample.image is not None:
                image = decoded(sample.image, sample.where, max_pixels)
                picture = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
                if picture not in pictures:
                    pictures[picture] = _difference_hash(image)
        except SampleError as error:
            damaged = damaged or str(error)
            continue
        words = [sample.question, *sample.choices, *([] if picture else [sample.context])]
        text = "\0".join(" ".join(word.casefold().split()) for word in words)
        samples.append((hashlib.sha256((picture + text).encode()).hexdigest(), reader.entry(place).key))
        captions += bool(sample.caption)
        kinds.add(kind_of(sample))
    found = {"samples": samples, "pictures": pictures, "captions": captions, "kinds": sorted(kinds)}
    return found | {"damaged": damaged}


def _difference_hash(image: Image.Image) -> int:
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR), dtype=np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "little")
