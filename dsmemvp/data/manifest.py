"""`dataset.json`: what a folder of shards holds, so that order and length are known before a byte of them is read.

{"schema": 2, "split": "train",
 "shards": [{"name": "000000.tar", "samples": 512, "bytes": 1234, "sha256": "...", "index_sha256": "..."}]}

Beside every shard lies its index (data/index.py), whose checksum stands here too.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from dsmemvp.data.cache import Cache
from dsmemvp.data.durable import replace_file
from dsmemvp.data.location import check_location, is_remote, masked
from dsmemvp.data.remote import Remote

SCHEMA = 2
FILE = "dataset.json"


@dataclass(frozen=True)
class Shard:
    name: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class Manifest:
    folder: Path
    """Where the manifest and the indexes lie, and the shards if they are local."""
    split: str
    shards: tuple[Shard, ...]
    remote: Remote | None = None

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples of every shard."""
        return tuple(shard.samples for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Tells this set of samples in this order from any other."""
        known = [(shard.name, shard.samples, shard.sha256) for shard in self.shards]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    @property
    def location(self) -> str:
        """Where the data set is, as a user has named it, without passwords and signatures."""
        return masked(self.remote.location) if self.remote else str(self.folder)

    @property
    def again(self) -> str:
        """What to do where the manifest, an index and a shard do not fit together."""
        return _again(self.folder, self.remote)

    def path(self, shard: int) -> Path:
        """Where a shard lies, or will lie once it is fetched."""
        known = self.shards[shard]
        return self.remote.path(known.name, known.sha256) if self.remote else self.folder / known.name

    def open(self, shard: int) -> int:
        """Descriptor to read a shard from, which the caller closes; a remote one is fetched if it is not in the cache.
        Raises ValueError or OSError."""
        if self.remote:
            known = self.shards[shard]
            return self.remote.open_shard(known.name, known.bytes, known.sha256)
        return os.open(self.path(shard), os.O_RDONLY)


def write_manifest(manifest: Manifest) -> None:
    text = {"schema": SCHEMA, "split": manifest.split, "shards": [asdict(s) for s in manifest.shards]}
    replace_file(manifest.folder / FILE, (json.dumps(text, indent=1) + "\n").encode())


def open_manifest(location: str, cache: Cache) -> Manifest:
    """The manifest of a local folder or a remote location. Raises FileNotFoundError, ValueError or OSError."""
    if not is_remote(location):
        return read_manifest(location)
    check_location(location, cache.pipes)
    remote = Remote(location, cache)
    return parse_manifest(remote.lists, remote.fetch_manifest(FILE), f"{masked(location)}, {FILE}", remote)


def read_manifest(folder: str | Path) -> Manifest:
    """Read `folder`/dataset.json and compare it with the files beside it (existence and size; contents are
    compared while reading). Raises FileNotFoundError or ValueError naming the file and the shard."""
    folder = Path(folder)
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; `dsmemvp index {folder}` makes one for a folder of shards")
    manifest = parse_manifest(folder, path.read_bytes(), str(path))
    for shard in manifest.shards:
        file = folder / shard.name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is in {FILE} but does not exist")
        if file.stat().st_size != shard.bytes:
            raise ValueError(
                f"{file} has {file.stat().st_size} bytes, {FILE} says {shard.bytes}; fetch or prepare it again, or, if"
                f" the file is right, run `dsmemvp index {folder}`"
            )
    return manifest


def parse_manifest(folder: Path, text: bytes, where: str, remote: Remote | None = None) -> Manifest:
    """The manifest that `text` is, of shards that lie in `folder`. Raises ValueError naming `where`."""
    again = _again(folder, remote)
    try:
        content = json.loads(text)
        if content["schema"] != SCHEMA:
            raise ValueError(f"{where}: schema {content['schema']}, this version reads {SCHEMA}; {again}")
        shards = tuple(_shard(**entry) for entry in content["shards"])
        manifest = Manifest(folder, content["split"], shards, remote)
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{where} is not a manifest: {error!r}; {again}") from None
    names = [shard.name for shard in shards]
    for name in names:
        if Path(name).name != name or name in ("", ".."):
            raise ValueError(f"{where}: shard name {name!r} leaves the folder")
    if len(set(names)) != len(names):
        raise ValueError(f"{where}: a shard is listed twice; {again}")
    if manifest.samples == 0:
        raise ValueError(f"{where}: no samples in it")
    return manifest


def _again(folder: Path, remote: Remote | None) -> str:
    return "run `dsmemvp index` on it where it lies" if remote else f"run `dsmemvp index {folder}`"


def _shard(name: str, samples: int, bytes: int, sha256: str, index_sha256: str) -> Shard:
    if type(name) is not str or type(samples) is not int or type(bytes) is not int or min(samples, bytes) < 0:
        raise TypeError(f"shard {name!r} with {samples!r} samples and {bytes!r} bytes")
    if type(sha256) is not str or type(index_sha256) is not str:
        raise TypeError(f"shard {name!r} without checksums")
    return Shard(name, samples, bytes, sha256, index_sha256)
