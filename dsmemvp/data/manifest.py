"""`dataset.json`: what a folder of shards holds, so that order and length are known before a byte of them is read.

{"schema": 1, "split": "train", "shards": [{"name": "000000.tar", "samples": 512, "bytes": 1234, "sha256": "..."}]}
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

SCHEMA = 1
FILE = "dataset.json"


@dataclass(frozen=True)
class Shard:
    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    folder: Path
    split: str
    shards: tuple[Shard, ...]

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def path(self, shard: int) -> Path:
        return self.folder / self.shards[shard].name


def describe(path: Path, samples: int) -> Shard:
    """The manifest's entry for a shard file that holds `samples` samples."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Shard(path.name, samples, path.stat().st_size, digest)


def write_manifest(manifest: Manifest) -> None:
    text = {"schema": SCHEMA, "split": manifest.split, "shards": [asdict(s) for s in manifest.shards]}
    (manifest.folder / FILE).write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: str | Path) -> Manifest:
    """Read `folder`/dataset.json and compare it with the files beside it (existence and size; contents are
    compared while reading). Raises FileNotFoundError or ValueError naming the file and the shard."""
    folder = Path(folder)
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; a folder of shards has one, written by data_prep")
    try:
        content = json.loads(path.read_bytes())
        if content["schema"] != SCHEMA:
            raise ValueError(f"{path}: schema {content['schema']}, this version reads {SCHEMA}; prepare the data again")
        shards = tuple(_shard(**entry) for entry in content["shards"])
        manifest = Manifest(folder, content["split"], shards)
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a manifest: {error!r}; prepare the data again") from None
    for shard in shards:
        file = folder / shard.name
        if Path(shard.name).name != shard.name:
            raise ValueError(f"{path}: shard name {shard.name!r} leaves the folder")
        if not file.is_file():
            raise FileNotFoundError(f"{file} is in {FILE} but does not exist")
        if file.stat().st_size != shard.bytes:
            raise ValueError(
                f"{file} has {file.stat().st_size} bytes, {FILE} says {shard.bytes}; prepare the data again"
            )
    if manifest.samples == 0:
        raise ValueError(f"{path}: no samples in it")
    return manifest


def _shard(name: str, samples: int, bytes: int, sha256: str) -> Shard:
    if type(name) is not str or type(samples) is not int or type(bytes) is not int or min(samples, bytes) < 0:
        raise TypeError(f"shard {name!r} with {samples!r} samples and {bytes!r} bytes")
    return Shard(name, samples, bytes, sha256)
