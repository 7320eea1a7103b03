"""Makes small rows, pictures, tar files and shard folders for tests."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from data_prep.shards import Row, write_shards
from dsmemvp.data.index import index_shard
from dsmemvp.data.manifest import Manifest, write_manifest
from dsmemvp.data.sample import Sample


def picture(
    format: str = "PNG", size: tuple[int, int] = (6, 4), colour: Any = (200, 30, 60), mode: str = "RGB", **more
) -> bytes:
    """An encoded picture of one colour."""
    return encoded(Image.new(mode, size, colour), format, **more)


def encoded(image: Image.Image, format: str = "PNG", **more) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **more)
    return out.getvalue()


def fields(number: int = 0, **changed: Any) -> dict[str, Any]:
    """A good multiple-choice row; keys changed to None are left out."""
    row = {"id": f"s{number}", "question": f"Which number is {number}?", "context": "", "choices": ["no", "yes"]}
    row |= {"answer": number % 2, "caption": "", "subject": "natural science", "grade": 3, **changed}
    return {k: v for k, v in row.items() if v is not None}


def sample(**changed: Any) -> Sample:
    given = {"question": "Which?", "answer": 0, "choices": ("one", "two"), "where": "file.tar, sample s0", **changed}
    return Sample(**given)


def good_rows(number: int) -> list[Row]:
    """Every second one with a picture."""
    return [Row(f"s{i:03d}", fields(i), picture(colour=(i, 0, 0)) if i % 2 == 0 else None) for i in range(number)]


def good_shards(folder: Path, number: int = 6, per_shard: int = 3) -> Manifest:
    return write_shards(good_rows(number), folder, "train", per_shard)


def as_json(row: Any) -> bytes:
    return json.dumps(row).encode()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar file of exactly these members; the standard library writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def manifest_of(*paths: Path) -> Manifest:
    """Indexes shard files and writes their manifest."""
    manifest = Manifest(paths[0].parent, "train", tuple(index_shard(path) for path in paths))
    write_manifest(manifest)
    return manifest
