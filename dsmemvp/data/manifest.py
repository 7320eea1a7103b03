"""`dataset.json`: what a folder of shards holds, so that order and length are known before a byte of them is read.

{"schema": 3, "split": "train",
 "shards": [{"name": "000000.tar", "samples": 512, "bytes": 1234, "sha256": "...", "index_sha256": "..."}]}

Beside every shard lies its index (data/index.py), whose checksum stands here too. The schema counts for both.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsmemvp.atomic_files import replace_file
from dsmemvp.data.cache import Cache
from dsmemvp.data.location import check_location, is_remote, masked
from dsmemvp.data.remote import Remote
from dsmemvp.data.shard_table import Shard, ShardTable
from dsmemvp.errors import UserError
from dsmemvp.json_text import parse_json, read_json

SCHEMA = 3
FILE = "dataset.json"
SHA256 = re.compile("[0-9a-f]{64}")
TAR_BLOCK = 512
"""Bytes of a tar file that a sample takes at least."""
MOST_BYTES = 1 << 50
"""Of a shard: sums of them stay far from the end of 64 bits."""
AT_A_TIME = 1000
"""Shards that one thread looks up; a network file system answers many at once."""


@dataclass(frozen=True)
class Manifest:
    folder: Path
    """Where the manifest and the indexes lie, and the shards if they are local."""
    split: str
    shards: Sequence[Shard]
    """Kept as a ShardTable."""
    remote: Remote | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.shards, ShardTable):
            object.__setattr__(self, "shards", ShardTable(self.shards))

    @property
    def table(self) -> ShardTable:
        assert isinstance(self.shards, ShardTable)
        return self.shards

    @property
    def samples(self) -> int:
        return int(self.table.samples.sum())

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples of every shard."""
        return tuple(self.table.samples.tolist())

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
        """What to do if the manifest, an index and a shard do not fit together."""
        return _again(self.folder, self.remote)

    def path(self, shard: int) -> Path:
        """Where a shard lies, or will lie once it is fetched."""
        known = self.shards[shard]
        return self.remote.path(known.name, known.sha256) if self.remote else self.folder / known.name

    def open(self, shard: int) -> int:
        """Descriptor to read a shard from, which the caller closes; a remote one is fetched if it is not in the cache.
        Raises UserError or OSError."""
        if self.remote:
            known = self.shards[shard]
            return self.remote.open_shard(known.name, known.bytes, known.sha256)
        path = self.path(shard)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would keep a rank waiting for ever
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UserError(f"{path} is not a regular file")
        return descriptor


def write_manifest(manifest: Manifest) -> None:
    text = {"schema": SCHEMA, "split": manifest.split, "shards": [asdict(s) for s in manifest.shards]}
    replace_file(manifest.folder / FILE, (json.dumps(text, indent=1) + "\n").encode())


def open_manifest(location: str, cache: Cache) -> Manifest:
    """The manifest of a local folder or a remote location; the shards are not looked for (check_files does). Raises
    UserError or OSError."""
    if not is_remote(location):
        return _read(Path(location))
    check_location(location, cache.pipes)
    remote = Remote(location, cache)
    where = f"{masked(location)}, {FILE}"
    content = parse_json(remote.fetch_manifest(FILE), where)
    return _manifest(content, remote.lists, where, remote)


def read_manifest(folder: str | Path) -> Manifest:
    """Read `folder`/dataset.json and compare it with the files beside it (existence and size; contents are
    compared while reading). Raises UserError naming the file and the shard."""
    manifest = _read(Path(folder))
    check_files(manifest)
    return manifest


def check_files(*manifests: Manifest) -> None:
    """Look up every local shard. One process of a run does it: asked by all ranks, a file system would have to tell the
    same thousands of times. Raises UserError naming the shard."""
    for manifest in manifests:
        if manifest.remote is None:
            shards = len(manifest.shards)
            parts = [range(start, min(start + AT_A_TIME, shards)) for start in range(0, shards, AT_A_TIME)]
            with ThreadPoolExecutor(min(32, len(parts) or 1)) as pool:
                for wrong in pool.map(lambda part, m=manifest: _first_wrong(m, part), parts):
                    if wrong is not None:
                        raise wrong


def _first_wrong(manifest: Manifest, numbers: range) -> Exception | None:
    """What is wrong with the first of these shards that cannot be used."""
    for shard in manifest.shards[numbers.start : numbers.stop]:
        file = manifest.folder / shard.name
        try:
            status = os.stat(file)
        except FileNotFoundError:
            return UserError(f"{file} is in {FILE} but does not exist")
        except OSError as error:
            return error
        if not stat.S_ISREG(status.st_mode):
            return UserError(f"{file} is in {FILE} but is not a regular file")
        if status.st_size != shard.bytes:
            return UserError(
                f"{file} has {status.st_size} bytes, {FILE} says {shard.bytes}; fetch or prepare it again, or, if"
                f" the file is right, run `dsmemvp index {manifest.folder}`"
            )
    return None


def manifest_file(folder: Path) -> Path:
    """The manifest of a folder of shards. Raises UserError if it is not there."""
    path = folder / FILE
    if not path.exists():
        raise UserError(f"{path} does not exist; `dsmemvp index {folder}` makes one for a folder of shards")
    return path


def _read(folder: Path) -> Manifest:
    path = manifest_file(folder)
    try:
        content = read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is not a manifest ({error}); {_again(folder, None)}") from None
    return _manifest(content, folder, str(path))


def _manifest(content: Any, folder: Path, where: str, remote: Remote | None = None) -> Manifest:
    """The manifest that `content` is, of shards that lie in `folder`. Raises UserError naming `where`."""
    again = _again(folder, remote)
    try:
        if content["schema"] != SCHEMA:
            raise UserError(f"{where}: schema {content['schema']!r:.20}, this version reads {SCHEMA}; {again}")
        if type(content["split"]) is not str:
            raise TypeError("split is not text")
        manifest = Manifest(folder, content["split"], [_shard(**entry) for entry in content["shards"]], remote)
    except (KeyError, TypeError) as error:
        raise UserError(f"{where} is not a manifest: {error!r:.300}; {again}") from None
    names = [shard.name for shard in manifest.shards]
    for name in names:
        if Path(name).name != name or name in ("", ".."):
            raise UserError(f"{where}: shard name {name!r:.300} leaves the folder")
        if not _is_file_name(name):
            raise UserError(f"{where}: shard name {name!r:.300} is not a usable name of a file")
    if len(set(names)) != len(names):
        raise UserError(f"{where}: a shard is listed twice; {again}")
    if manifest.samples == 0:
        raise UserError(f"{where}: no samples in it")
    return manifest


def _again(folder: Path, remote: Remote | None) -> str:
    return "run `dsmemvp index` on it where it lies" if remote else f"run `dsmemvp index {folder}`"


def _is_file_name(name: str) -> bool:
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write
        return False


def _shard(name: str, samples: int, bytes: int, sha256: str, index_sha256: str) -> Shard:
    if type(name) is not str or type(samples) is not int or type(bytes) is not int or min(samples, bytes) < 0:
        raise TypeError(f"shard {name!r} with {samples!r} samples and {bytes!r} bytes")
    if bytes > MOST_BYTES or samples > bytes // TAR_BLOCK:
        raise TypeError(f"shard {name!r}: {bytes} bytes cannot hold {samples} samples")
    for digest in (sha256, index_sha256):
        if type(digest) is not str or not SHA256.fullmatch(digest):
            raise TypeError(f"shard {name!r} without checksums of 64 hexadecimal digits")
    return Shard(name, samples, bytes, sha256, index_sha256)
