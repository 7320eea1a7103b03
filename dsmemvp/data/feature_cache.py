"""Features of a frozen vision tower, computed once and kept beside the shards; training then reads them in the place of
pixels (`vision.cache_features`).

    DATA/NAME/000000.tar.0123456789abcdef.features    rows [P, v] of the shard's distinct images, one after another
    DATA/NAME/000000.tar.json        what they follow from, the shard's checksum, the digits in the name of the rows,
                                     and of each row the SHA-256 of the encoded image that it is of and its own CRC-32

The JSON file is written last: a shard that has one is whole. Until a file of rows is whole it is named
partial-HOST-..., and locked by the process that writes it; what a killed one has left is removed by the next run. The
digits follow from the content: of two runs that compute the same shard at once, on machines that round otherwise,
neither writes over rows that the other one reads. A row is read by its bytes alone, checked, and never mapped: a file
that is cut off meanwhile is an error to be reported.

P image tokens, v width of the tower.
"""

import errno
import fcntl
import hashlib
import json
import os
import platform
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch

from dsmemvp.atomic_files import replace_file
from dsmemvp.data.images import ImageTransform
from dsmemvp.data.manifest import Manifest
from dsmemvp.dtypes import NAMED
from dsmemvp.errors import UserError
from dsmemvp.json_text import read_json

FORMAT = 2
KEY = "vision.cache_features"
DIGEST = hashlib.sha256().digest_size
PARTIAL = "partial-"
ABANDONED = 3600.0
"""Seconds without a row after which a partial file of another host, whose lock may be unknown here, is abandoned."""


@dataclass(frozen=True)
class Settings:
    """What features follow from; two caches of the same are the same."""

    tower: str
    """Fingerprint of the weights that compute them."""
    resolution: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    blocks: int
    class_token: bool
    norm: bool
    dtype: str
    tokens: int
    """P"""
    width: int
    """v"""

    @property
    def shape(self) -> tuple[int, int]:
        return self.tokens, self.width

    @property
    def row_bytes(self) -> int:
        return self.tokens * self.width * NAMED[self.dtype].itemsize

    def plain(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return json.loads(json.dumps({"format": FORMAT, **vars(self)}))


def rows_path(manifest: Manifest, name: str, shard: int, digits: str) -> Path:
    return manifest.folder / name / f"{manifest.shards[shard].name}.{digits}.features"


def about_path(manifest: Manifest, name: str, shard: int) -> Path:
    return manifest.folder / name / f"{manifest.shards[shard].name}.json"


def missing_shards(manifest: Manifest, name: str, settings: Settings) -> list[int]:
    """Those without whole features. Raises UserError for features that follow from something else: they are not
    replaced, since another run may read them."""
    folder = manifest.folder / name
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{KEY}: {folder} is not a folder; give another name")
    return [shard for shard in range(len(manifest.shards)) if _about(manifest, name, shard, settings) is None]


def write_shard(
    manifest: Manifest, name: str, shard: int, settings: Settings, rows: Iterable[tuple[bytes, torch.Tensor]]
) -> int:
    """`rows` are (SHA-256 of the encoded image, [P, v] on any device), one for each distinct image. Returns their
    number. Raises OSError, or UserError if the folder may not be written; then, or if `rows` end in an error, nothing
    of it counts."""
    digests, checksums = [], []
    # several runs may compute the same features at once, as the tasks of a study's array do
    own = f"{_own_partial()}{os.getpid()}-{manifest.shards[shard].name}.features"
    partial = manifest.folder / name / own
    try:
        with _new_file(partial) as file:
            for digest, row in rows:
                assert tuple(row.shape) == settings.shape and row.dtype == NAMED[settings.dtype]
                content = row.cpu().contiguous().view(torch.uint8).numpy().tobytes()
                file.write(content)
                digests.append(digest.hex())
                checksums.append(zlib.crc32(content))
            file.flush()
            os.fsync(file.fileno())
            digits = hashlib.sha256(json.dumps([digests, checksums]).encode()).hexdigest()[:16]
            partial.replace(rows_path(manifest, name, shard, digits))
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    about: dict[str, Any] = {"settings": settings.plain(), "shard": manifest.shards[shard].sha256}
    about |= {"rows": digits, "images": digests, "crc32": checksums}
    replace_file(about_path(manifest, name, shard), json.dumps(about).encode(), shared=True)
    return len(digests)


def remove_partial(manifest: Manifest, name: str) -> None:
    """Remove what killed processes have left half written."""
    for path in (manifest.folder / name).glob(f"{PARTIAL}*.features"):
        with suppress(OSError), path.open("rb") as file:  # locked, or gone meanwhile
            if path.name.startswith(_own_partial()) or time.time() - path.stat().st_mtime > ABANDONED:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _own_partial() -> str:
    return f"{PARTIAL}{platform.node()}-"


def _new_file(path: Path) -> BinaryIO:
    """Open to write, and locked. Raises UserError if that is not allowed, and OSError."""
    try:
        path.parent.mkdir(exist_ok=True)
        while True:
            file = path.open("wb")
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:  # else another run has removed it before it was locked
                return file
            file.close()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise UserError(f"{KEY}: {path.parent} beside the shards cannot be written ({error.strerror})") from None


class _About(NamedTuple):
    """What a shard's JSON file says."""

    rows: Path
    digests: list[bytes]
    crc32: list[int]


def _about(manifest: Manifest, name: str, shard: int, settings: Settings) -> _About | None:
    """None if there is no JSON file, or one of an earlier version of the shard. Raises UserError."""
    path = about_path(manifest, name, shard)
    try:
        about = read_json(path)
        of_shard, found = about["shard"], about["settings"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from None
    if of_shard != manifest.shards[shard].sha256:
        return None
    _compare(path.parent, found, settings.plain())
    try:
        digests, checksums = [bytes.fromhex(text) for text in about["images"]], about["crc32"]
        if len(digests) != len(checksums) or any(len(digest) != DIGEST for digest in digests):
            raise ValueError("its lists do not fit together")
        if not all(type(number) is int and 0 <= number < 1 << 32 for number in checksums):
            raise ValueError("its checksums are none")
        rows = rows_path(manifest, name, shard, bytes.fromhex(about["rows"]).hex())
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from None
    size = len(digests) * settings.row_bytes
    if not rows.is_file() or rows.stat().st_size != size:
        raise UserError(f"{KEY}: {rows} has not the {size} bytes that {path.name} says; remove both")
    return _About(rows, digests, checksums)


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{KEY}: {path} is damaged ({error}); remove it, and it is computed again")


def _compare(folder: Path, found: Any, wanted: Mapping[str, Any]) -> None:
    if found == wanted:
        return
    found = found if isinstance(found, dict) else {}
    wrong = [key for key in wanted if found.get(key) != wanted[key]]
    told = [f"{key} {found.get(key)!r:.40} instead of {wanted[key]!r:.40}" for key in wrong if key != "tower"]
    told = ["another vision tower", *told] if "tower" in wrong else told
    raise UserError(
        f"{KEY}: {folder} holds features of {', '.join(told) or 'other settings'}; remove that folder, or give another"
        " name"
    )


class _Table(NamedTuple):
    """Of all rows of all shards, sorted by `keys`."""

    files: list[Path]
    keys: np.ndarray
    """uint64: the first bytes of the images' SHA-256"""
    shards: np.ndarray
    """Index of the row's file."""
    rows: np.ndarray
    crc32: np.ndarray


@dataclass(frozen=True)
class CachedFeatures:
    """In the place of data/images.py's ImageTransform: an encoded image -> its features. What travels to workers are
    names; each reads the JSON files by itself."""

    pixels: ImageTransform
    settings: Settings
    name: str
    manifests: tuple[Manifest, ...]

    @property
    def resolution(self) -> int:
        return self.pixels.resolution

    @property
    def max_pixels(self) -> int:
        return self.pixels.max_pixels

    def __call__(self, encoded: bytes, where: str) -> torch.Tensor:
        """-> [P, v] of the compute type. Raises SampleError for an image that cannot be decoded, as without a cache;
        UserError if the features are damaged or not there."""
        table = self._table
        key = _key(hashlib.sha256(encoded).digest())
        at = int(np.searchsorted(table.keys, key))
        if at == len(table.keys) or table.keys[at] != key:
            self.pixels(encoded, where)  # an image that cannot be used has none
            raise UserError(
                f"{KEY}: the features of {where} are not in {self.name}; remove that folder beside its shards"
            )
        path, size = table.files[int(table.shards[at])], self.settings.row_bytes
        content = bytearray(_read(path, int(table.rows[at]) * size, size))
        if zlib.crc32(content) != int(table.crc32[at]):
            raise UserError(f"{KEY}: {path} is damaged (row {int(table.rows[at])}); remove its folder")
        return torch.frombuffer(content, dtype=NAMED[self.settings.dtype]).view(self.settings.shape)

    @cached_property
    def _table(self) -> _Table:
        """Raises UserError if a shard has no features."""
        files, keys, shards, rows, checksums = [], [], [], [], []
        places = [(m, shard) for m in self.manifests for shard in range(len(m.shards))]
        for number, (manifest, shard) in enumerate(places):
            about = _about(manifest, self.name, shard, self.settings)
            if about is None:
                raise UserError(
                    f"{KEY}: {about_path(manifest, self.name, shard)} is not there on this node; data.train and"
                    " data.validation must lie on a file system that all nodes share"
                )
            count = len(about.digests)
            files.append(about.rows)
            keys.append(np.array([_key(digest) for digest in about.digests], dtype=np.uint64))
            shards.append(np.full(count, number, dtype=np.int32))
            rows.append(np.arange(count, dtype=np.int32))
            checksums.append(np.array(about.crc32, dtype=np.uint32))
        columns = [np.concatenate(column) for column in (keys, shards, rows, checksums)]
        order = np.argsort(columns[0], kind="stable")
        return _Table(files, *(column[order] for column in columns))

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("pixels", "settings", "name", "manifests")}

    def check(self) -> None:
        """Whether all shards have features here. Raises UserError."""
        _ = self._table


def _key(digest: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(digest[:8], "little"))


def _read(path: Path, start: int, size: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        content = os.pread(descriptor, size, start)
    finally:
        os.close(descriptor)
    if len(content) != size:
        raise UserError(f"{KEY}: {path} is cut off; remove its folder")
    return content


def distinct(images: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """(SHA-256, encoded image) of each image that has not come before."""
    seen: set[bytes] = set()
    for image in images:
        digest = hashlib.sha256(image).digest()
        if digest not in seen:
            seen.add(digest)
            yield digest, image
