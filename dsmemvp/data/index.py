"""The index of a shard: which bytes of the tar file are which sample, so that a sample is read without those before it.

    000000.tar.index    a header, then one column of numbers after the other (index_columns.py)

Its columns hold, for every sample in file order: the key; ending, offset and bytes of each member that is ever read;
the CRC-32 of those members; the characters of text that a model would see, from which its tokens are estimated; and for
those that cannot be used, why. They take some 60 bytes per sample, on the disk as in memory. A worker reads them whole
and does not map them: what was compared with the checksum cannot change any more, and a file that is cut off, or a file
server that is gone, is an error to be reported and not a signal that kills the worker.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dsmemvp.atomic_files import replace_file
from dsmemvp.data.index_columns import HEADER_BYTES, Columns, columns_of, pack, unpack
from dsmemvp.data.manifest import Manifest, Shard
from dsmemvp.data.sample import IMAGE_ENDINGS
from dsmemvp.data.tar import Entry, Member, scan
from dsmemvp.errors import UserError

SUFFIX = ".index"
ENDINGS = ("json", "txt", "png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff")
"""An index has their numbers: others may only be added at the end."""
_IS_IMAGE = np.array([ending in IMAGE_ENDINGS for ending in ENDINGS])


class ShardIndex(Sequence[Entry]):
    """The entries of a shard, made from the columns as they are asked for: most are only ever weighed."""

    def __init__(self, columns: Columns):
        self._columns = columns
        shown = _IS_IMAGE[columns["ending"]]
        self._images = np.zeros(len(columns["crc32"]), dtype=bool)
        """[samples]"""
        self._images[np.searchsorted(columns["member_end"], np.flatnonzero(shown), side="right")] = True

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, sample):
        columns, sample = self._columns, range(len(self))[sample]
        part = slice(*_span(columns["member_end"], sample))
        rows = zip(*(columns[name][part].tolist() for name in ("ending", "offset", "size")), strict=True)
        members = tuple(Member(ENDINGS[ending], offset, size) for ending, offset, size in rows)
        key = _text(columns, "keys", "key_end", sample)
        return Entry(key, members, int(columns["crc32"][sample]), int(columns["length"][sample]), self._problem(sample))

    def weight(self, sample: int) -> tuple[int, bool]:
        """(characters of text, whether there is an image)"""
        return int(self._columns["length"][sample]), bool(self._images[sample])

    def _problem(self, sample: int) -> str:
        bad = self._columns["bad"]
        at = int(np.searchsorted(bad, sample))
        return _text(self._columns, "problems", "problem_end", at) if at < len(bad) and bad[at] == sample else ""


def index_path(shard: Path) -> Path:
    return shard.with_name(shard.name + SUFFIX)


def index_shard(shard: Path, ignored: Counter[str] | None = None) -> Shard:
    """Write the index of a shard file and return its line for the manifest; `ignored` counts endings of members that
    are never read. Raises UserError or OSError naming the file."""
    found = scan(shard, Counter() if ignored is None else ignored)
    content = pack(columns_of(found.entries, ENDINGS))
    replace_file(index_path(shard), content)
    checksum = hashlib.sha256(content).hexdigest()
    return Shard(shard.name, len(found.entries), found.size, found.sha256, checksum)


def read_index(manifest: Manifest, shard: int) -> ShardIndex:
    """A shard's entries. Raises UserError if its index is not the one of the manifest, or does
    not fit the shard."""
    expected = manifest.shards[shard]
    path = index_path(manifest.folder / expected.name)
    again = manifest.again
    most = expected.bytes + HEADER_BYTES  # a tar file spends 512 bytes on every member: an index is never larger
    if manifest.remote:
        content = manifest.remote.fetch_index(path.name, most, expected.index_sha256)
    else:
        content = _content(path, most, again)
    if hashlib.sha256(content).hexdigest() != expected.index_sha256:
        raise UserError(f"{path} is not the index that the manifest was written for; {again}")
    try:
        columns = unpack(content, len(ENDINGS), expected.bytes)
    except ValueError as error:
        raise UserError(f"{path} is not a usable index: {error}; {again}") from None
    if len(columns["crc32"]) != expected.samples:
        raise UserError(f"{path} holds {len(columns['crc32'])} samples, the manifest says {expected.samples}; {again}")
    return ShardIndex(columns)


def _content(path: Path, most: int, again: str) -> bytes:
    if not path.exists():
        raise UserError(f"{path} does not exist; {again}")
    if not path.is_file():
        raise UserError(f"{path} is not a regular file; {again}")
    if path.stat().st_size > most:
        raise UserError(f"{path} is not the index that the manifest was written for; {again}")
    return path.read_bytes()


def _span(ends: np.ndarray, at: int) -> tuple[int, int]:
    return (int(ends[at - 1]) if at else 0), int(ends[at])


def _text(columns: Columns, texts: str, ends: str, at: int) -> str:
    start, end = _span(columns[ends], at)
    return columns[texts][start:end].tobytes().decode("utf-8", "surrogateescape")
