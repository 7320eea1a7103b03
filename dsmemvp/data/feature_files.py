"""Files of a frozen vision tower's features beside the shards: written whole or not there (`vision.cache_features`).
feature_cache.py reads their rows.

    DATA/NAME/000000.tar.0123456789abcdef.features    rows [P, v] of the shard's distinct images, one after another
    DATA/NAME/000000.tar.json        what they follow from, the shard's checksum, the digits in the name of the rows,
                                     and of each row the SHA-256 of the encoded image that it is of and its own CRC-32

The JSON file is written last: a shard that has one is whole. Until a file of rows is whole it is named
partial-HOST-..., and locked by the process that writes it; what a killed one has left is removed by the next run. The
digits follow from the content: of two runs that compute the same shard at once, on machines that round otherwise,
neither writes over rows that the other one reads.

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
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from dsmemvp.atomic_files import replace_file
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
    return [shard for shard in range(len(manifest.shards)) if read_about(manifest, name, shard, settings) is None]


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


class About(NamedTuple):
    """What a shard's JSON file says."""

    rows: Path
    digests: list[bytes]
    crc32: list[int]


def read_about(manifest: Manifest, name: str, shard: int, settings: Settings) -> About | None:
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
    return About(rows, digests, checksums)


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


def distinct(images: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """(SHA-256, encoded image) of each image that has not come before."""
    seen: set[bytes] = set()
    for image in images:
        digest = hashlib.sha256(image).digest()
        if digest not in seen:
            seen.add(digest)
            yield digest, image
