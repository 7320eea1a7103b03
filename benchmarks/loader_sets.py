"""The samples that benchmarks/loader.py measures on, and writing them in each contender's own format."""

import functools
import io
import json
import multiprocessing
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from data_prep.shards import Row, shard_name, write_shard
from data_prep.tokenizer import train_tokenizer
from dsmemvp.data.manifest import Manifest, Shard, write_manifest

WRITERS = 2
PICTURES = 64
"""Different JPEGs; the samples take turns with them."""


@dataclass(frozen=True)
class Set:
    """One set of samples: a text of `text` characters each, and `image` random bytes (-1: a real JPEG, 0: none)."""

    name: str
    samples: int
    per_shard: int
    text: int
    image: int

    @property
    def members(self) -> tuple[str, ...]:
        return ("json", "jpg") if self.image else ("json",)

    @property
    def shards(self) -> range:
        return range(-(-self.samples // self.per_shard))

    def rows(self, shard: int) -> Iterator[dict[str, bytes]]:
        """The members of a shard's samples; bytes 8 to 16 of the json member are the sample's number."""
        rng = random.Random(shard)
        context = "".join(rng.choice("abcde ") for _ in range(self.text + 1000))
        pictures = _pictures() if self.image < 0 else ()
        for number in range(shard * self.per_shard, min(self.samples, (shard + 1) * self.per_shard)):
            start = rng.randrange(1000)
            fields = {"id": f"{number:08d}", "question": "Which is it?", "choices": ["this", "that"], "answer": 0}
            row = {"json": json.dumps({**fields, "context": context[start : start + self.text]}).encode()}
            if self.image:
                row["jpg"] = pictures[number % PICTURES] if self.image < 0 else rng.randbytes(self.image)
            yield row


def write(chosen: Set, folder: Path, contender: str) -> None:
    """Write the set below `folder` unless it is there."""
    folder, done = folder / contender, folder / f"{contender}.done"
    if done.is_file() and done.read_text() == repr(chosen):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    {"tar": _write_tar, "mds": _write_mds, "litdata": _write_litdata}[contender](chosen, folder)
    done.write_text(repr(chosen))


def write_tokenizer(path: Path) -> None:
    rng = random.Random(0)
    texts = ("".join(rng.choice("abcdehilqorstuw ?()\n:.") for _ in range(200)) for _ in range(200))
    if not path.is_file():
        train_tokenizer(texts, path, vocabulary=400)


def _write_tar(chosen: Set, folder: Path) -> None:
    make = functools.partial(_tar, chosen, folder)
    with multiprocessing.get_context("forkserver").Pool(WRITERS) as pool:
        shards = list(tqdm(pool.imap(make, chosen.shards), f"{folder}, shards", len(chosen.shards), mininterval=2))
    write_manifest(Manifest(folder, "train", tuple(shards)))


def _tar(chosen: Set, folder: Path, shard: int) -> Shard:
    rows = (
        Row(row["json"][8:16].decode(), json.loads(row["json"]), row.get("jpg"), "jpg") for row in chosen.rows(shard)
    )
    return write_shard(rows, folder / shard_name(shard))


def _write_mds(chosen: Set, folder: Path) -> None:
    writer = import_streaming().MDSWriter
    shard_bytes = sum(sum(map(len, row.values())) + 16 for row in chosen.rows(0)) + 4096
    with writer(out=str(folder), columns=dict.fromkeys(chosen.members, "bytes"), size_limit=shard_bytes) as out:
        for shard in tqdm(chosen.shards, f"{folder}, shards", mininterval=2):
            for row in chosen.rows(shard):
                out.write(row)


def _write_litdata(chosen: Set, folder: Path) -> None:
    from litdata import optimize

    optimize(
        fn=functools.partial(Set.rows, chosen),
        inputs=list(chosen.shards),
        output_dir=str(folder),
        chunk_size=chosen.per_shard,
        num_workers=1,
        verbose=False,
    )


def import_streaming():
    """MosaicML's package. It imports torchvision for ready-made data sets that are not used here: if torchvision is
    missing, names of no content stand in for it during the import."""
    import transformers  # noqa: F401 (before: it looks for torchvision too, and must not find the names)

    try:
        import torchvision  # noqa: F401
    except ImportError:
        from unittest import mock

        stand_in = mock.MagicMock(VisionDataset=object, CIFAR10=object)
        names = ["torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"]
        sys.modules.update(dict.fromkeys(names, stand_in))
        import streaming

        for name in names:
            del sys.modules[name]
    import streaming

    return streaming


@functools.cache
def _pictures() -> tuple[bytes, ...]:
    return tuple(picture(number) for number in range(PICTURES))


def picture(number: int, size: tuple[int, int] = (640, 480), mode: str = "RGB", format: str = "JPEG", **more) -> bytes:
    """Something like a photo: noise of several sizes, a few shapes, some grain."""
    rng = np.random.default_rng(number)
    width, height = size
    whole = np.zeros((height, width, 3), dtype=np.float32)
    for coarse, weight in ((80, 0.6), (20, 0.25), (5, 0.1)):
        noise = rng.integers(0, 256, (height // coarse + 2, width // coarse + 2, 3), dtype=np.uint8)
        whole += weight * np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))
    image = Image.fromarray(whole.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        box = (x, y, x + int(rng.integers(width // 10, width // 3)), y + int(rng.integers(height // 10, height // 3)))
        draw.ellipse(box, fill=tuple(map(int, rng.integers(0, 256, 3))))
    grain = rng.normal(0, 4, (height, width, 1))
    image = Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8)).convert(mode)
    out = io.BytesIO()
    image.save(out, format, **({"quality": 90} if format == "JPEG" else {}) | more)
    return out.getvalue()
