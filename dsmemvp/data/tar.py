"""A tar file -> which bytes of it are which sample, and its checksum, in one pass and without trusting anything that
stands in it.

Samples are grouped as webdataset groups them: consecutive members with the same name up to the first dot.
"""

import hashlib
import itertools
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from webdataset.tariterators import base_plus_ext

from dsmemvp.data.sample import IMAGE_ENDINGS, TEXT_ENDINGS, text_length
from dsmemvp.errors import UserError

CHUNK = 1 << 20
"""Bytes of a shard that are read at a time, but for members."""
IMPOSSIBLE = "a member claims an impossible size"


class Member(NamedTuple):
    ending: str
    offset: int
    size: int


class Entry(NamedTuple):
    """One sample of a shard."""

    key: str
    members: tuple[Member, ...]
    crc32: int
    length: int
    """Characters of text that a model would see."""
    problem: str = ""
    """Why the sample cannot be used, if the tar file alone shows it."""


class Scan(NamedTuple):
    """What one pass over the bytes of a shard file finds."""

    entries: list[Entry]
    size: int
    """Of the file, in bytes."""
    sha256: str


def scan(shard: Path, ignored: Counter[str]) -> Scan:
    """The entries of a tar file and its checksum; every byte is read once. `ignored` counts endings of members that are
    never read. Raises UserError if the file is empty, compressed, damaged or cut off: a file whose number of samples is
    not certain cannot take part in an order."""
    if shard.exists() and not shard.is_file():  # opening a pipe would wait for its writer
        raise UserError(f"{shard} is not a regular file")
    try:
        with shard.open("rb", buffering=CHUNK) as raw:
            file = _HashingFile(raw, shard.stat().st_size)
            with tarfile.open(fileobj=file, mode="r:") as tar:  # type: ignore[call-overload]
                groups = itertools.groupby(_members(tar, file, shard), key=lambda member: member.key)
                samples = [_sample(key, members) for key, members in groups]
                _check_end(file, tar.offset, shard)
    except tarfile.TarError as error:
        why = "it is empty" if shard.stat().st_size == 0 else str(error)
        head = _head(shard)
        if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd")):
            why = "it is compressed; unpack it first: samples are read by their place in the file"
        raise UserError(f"{shard} is not a readable tar file ({why})") from None
    return Scan(_entries(samples, ignored), file.tell(), file.sha256())


class _HashingFile:
    """A file that is read once, forwards, and hashed as it passes; as much of a file as tarfile needs."""

    def __init__(self, file: BinaryIO, size: int):
        """`size` bounds every read: tarfile asks for as many bytes as a damaged header says."""
        self._file, self._size = file, size
        self._digest = hashlib.sha256()
        self._at = 0
        self.last = b""
        """What the last read has returned."""

    def read(self, size: int) -> bytes:
        """Raises ReadError, OSError."""
        if size < 0:
            raise tarfile.ReadError(IMPOSSIBLE)
        self.last = self._file.read(min(size, self._size))
        self._digest.update(self.last)
        self._at += len(self.last)
        return self.last

    def tell(self) -> int:
        return self._at

    def seek(self, to: int) -> None:
        """Reads up to there, or to the end of the file. Raises ReadError if it has passed the place, OSError."""
        if to < self._at:
            raise tarfile.ReadError(IMPOSSIBLE)
        while self._at < to and self.read(min(to - self._at, CHUNK)):
            pass

    def sha256(self) -> str:
        """Of what was read so far."""
        return self._digest.hexdigest()


class _Member(NamedTuple):
    key: str
    ending: str
    offset: int
    size: int
    content: bytes
    """Empty if no sample reads members with this ending."""


class _Sample(NamedTuple):
    entry: Entry
    endings: Counter[str]
    """Of all its members."""


def _members(tar: tarfile.TarFile, file: _HashingFile, shard: Path) -> Iterator[_Member]:
    """The files in it that belong to a sample, in their order."""
    for info in _infos(tar, shard):
        key, ending = base_plus_ext(info.name)
        if not info.isreg() or _is_meta(info.name) or key is None:
            continue
        ending, content = ending.lower(), b""
        if ending in IMAGE_ENDINGS or ending in TEXT_ENDINGS:
            file.seek(info.offset_data)
            content = file.read(info.size)
        yield _Member(key, ending, info.offset_data, info.size, content)


def _infos(tar: tarfile.TarFile, shard: Path) -> Iterator[tarfile.TarInfo]:
    """tarfile believes any size: it goes backwards and around for ever, or out of its numbers."""
    infos, most = iter(tar), shard.stat().st_size
    while True:
        try:
            info = next(infos, None)
        except (ValueError, OverflowError, MemoryError):
            raise tarfile.ReadError(IMPOSSIBLE) from None
        if info is None:
            return
        if not 0 <= info.size <= most:
            raise tarfile.ReadError(IMPOSSIBLE)
        if info.sparse is not None:
            raise UserError(f"{shard}: member {info.name} is stored sparsely; write the shard with another program")
        yield info


def _is_meta(name: str) -> bool:
    return re.match(r"__[^/]*__($|/)", name) is not None


def _check_end(file: _HashingFile, offset: int, shard: Path) -> None:
    """tarfile takes a damaged header, a block of zeros and a file cut off between two members for the file's end; only
    zeros, a block at least, are one. `offset` is of the block that it took for the end, which it has read last."""
    block = file.last
    if len(block) < tarfile.BLOCKSIZE:
        raise UserError(f"{shard} is not a readable tar file (it is cut off: the mark of its end is missing)")
    while block:
        if block.strip(b"\0"):
            at = offset + len(block) - len(block.lstrip(b"\0"))
            raise UserError(f"{shard} is not a readable tar file (it is damaged at byte {at})")
        offset += len(block)
        block = file.read(CHUNK)


def _sample(key: str, members: Iterable[_Member]) -> _Sample:
    """A sample from its members, of which one at a time is in memory."""
    found: list[Member] = []
    endings: Counter[str] = Counter()
    crcs, lengths = dict.fromkeys(TEXT_ENDINGS, 0), dict.fromkeys(TEXT_ENDINGS, 0)
    """Of the sample for each text that may turn out to be its own."""
    for _, ending, offset, size, content in members:
        endings[ending] += 1
        found.append(Member(ending, offset, size))
        for text in TEXT_ENDINGS:
            if ending == text or ending in IMAGE_ENDINGS:
                crcs[text] = zlib.crc32(content, crcs[text])
            if ending == text:
                lengths[text] = text_length(ending, content)
    if problem := _problem(key, endings):
        return _Sample(Entry(key, (), 0, 0, problem), endings)
    own = next((text for text in TEXT_ENDINGS if text in endings), TEXT_ENDINGS[0])
    used = tuple(member for member in found if member.ending == own or member.ending in IMAGE_ENDINGS)
    return _Sample(Entry(key, used, crcs[own], lengths[own]), endings)


def _problem(key: str, endings: Counter[str]) -> str:
    if ".." in PurePosixPath(key).parts or key.startswith("/"):
        return "its name leads out of the folder"
    twice = sorted(ending for ending, times in endings.items() if times > 1)
    return f"its member {twice[0]} stands twice" if twice else ""


def _entries(samples: list[_Sample], ignored: Counter[str]) -> list[Entry]:
    scattered = _scattered(samples)
    entries = []
    for entry, endings in samples:
        if entry.key in scattered:
            problem = "its members do not stand together; pack the shard with `tar --sort=name`"
            entry = Entry(entry.key, (), 0, 0, problem)
        if not entry.problem:
            ignored.update(endings - Counter(member.ending for member in entry.members))
        entries.append(entry)
    return entries


def _scattered(samples: list[_Sample]) -> set[str]:
    """Keys of samples whose members do not stand together: each part would be taken for a sample of its own."""
    known: dict[str, set[str]] = {}
    found = set()
    for entry, endings in samples:
        before = known.setdefault(entry.key, set())
        if before and before.isdisjoint(endings):  # otherwise another sample of this name, as for webdataset
            found.add(entry.key)
        before.update(endings)
    return found


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)
