"""A tar file -> which bytes of it are which sample, without trusting anything that stands in it.

Samples are grouped as webdataset groups them: consecutive members with the same name up to the first dot.
"""

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
    """Why the sample cannot be used, where the tar file alone shows it."""


def scan(shard: Path, ignored: Counter[str]) -> list[Entry]:
    """The entries of a tar file. Raises UserError where it is empty, compressed, damaged or cut off: a file whose
    number of samples is not certain cannot take part in an order."""
    if shard.exists() and not shard.is_file():
        raise UserError(f"{shard} is not a regular file")
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = _members(tar, shard)
            _check_end(file, tar.offset, shard)
            groups = list(_grouped(members))
            scattered = _scattered(groups)
            return [_entry(file, key, group, ignored, key in scattered) for key, group in groups]
    except tarfile.TarError as error:
        why = "it is empty" if shard.stat().st_size == 0 else str(error)
        head = _head(shard)
        if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd")):
            why = "it is compressed; unpack it first: samples are read by their place in the file"
        raise UserError(f"{shard} is not a readable tar file ({why})") from None


def _members(tar: tarfile.TarFile, shard: Path) -> list[tarfile.TarInfo]:
    """The files in it. tarfile believes any size: it goes backwards and around for ever, or out of its numbers."""
    members, most = [], shard.stat().st_size
    try:
        for member in tar:
            if not 0 <= member.size <= most:
                raise OverflowError
            members.append(member)
    except (ValueError, OverflowError, MemoryError):
        raise UserError(f"{shard} is not a readable tar file (a member claims an impossible size)") from None
    for member in members:
        if member.sparse is not None:
            raise UserError(f"{shard}: member {member.name} is stored sparsely; write the shard with another program")
    return [member for member in members if member.isreg() and not _is_meta(member.name)]


def _is_meta(name: str) -> bool:
    return re.match(r"__[^/]*__($|/)", name) is not None


def _check_end(file: BinaryIO, offset: int, shard: Path) -> None:
    """tarfile takes a damaged header, a block of zeros and a file cut off between two members for the file's end; only
    zeros, a block at least, are one."""
    file.seek(offset)
    if len(block := file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        raise UserError(f"{shard} is not a readable tar file (it is cut off: the mark of its end is missing)")
    while block:
        if block.strip(b"\0"):
            at = offset + len(block) - len(block.lstrip(b"\0"))
            raise UserError(f"{shard} is not a readable tar file (it is damaged at byte {at})")
        offset += len(block)
        block = file.read(1 << 20)


def _grouped(members: Iterable[tarfile.TarInfo]) -> Iterator[tuple[str, list[tuple[str, tarfile.TarInfo]]]]:
    """(key, [(ending, member), ...]) of consecutive members with the same key."""
    key, group = None, []
    for member in members:
        prefix, ending = base_plus_ext(member.name)
        if prefix is None:
            continue
        if prefix != key and key is not None:
            yield key, group
            group = []
        key = prefix
        group.append((ending.lower(), member))
    if key is not None:
        yield key, group


def _scattered(groups: list[tuple[str, list[tuple[str, tarfile.TarInfo]]]]) -> set[str]:
    """Keys of samples whose members do not stand together: each part would be taken for a sample of its own."""
    endings: dict[str, set[str]] = {}
    found = set()
    for key, group in groups:
        here = {ending for ending, _ in group}
        if key in endings and endings[key].isdisjoint(here):  # otherwise another sample of this name, as for webdataset
            found.add(key)
        endings[key] = endings.get(key, set()) | here
    return found


def _entry(
    file: BinaryIO, key: str, group: list[tuple[str, tarfile.TarInfo]], ignored: Counter[str], scattered: bool
) -> Entry:
    if scattered:
        return Entry(key, (), 0, 0, "its members do not stand together; pack the shard with `tar --sort=name`")
    parts = PurePosixPath(key).parts
    if ".." in parts or key.startswith("/"):
        return Entry(key, (), 0, 0, "its name leads out of the folder")
    endings = [ending for ending, _ in group]
    twice = sorted({ending for ending in endings if endings.count(ending) > 1})
    if twice:
        return Entry(key, (), 0, 0, f"its member {twice[0]} stands twice")
    wanted = {ending for ending in endings if ending in IMAGE_ENDINGS}
    wanted |= set([ending for ending in TEXT_ENDINGS if ending in endings][:1])
    ignored.update(ending for ending in endings if ending not in wanted)
    members, crc32, length = [], 0, 0
    for ending, info in group:
        if ending in wanted:
            file.seek(info.offset_data)
            content = file.read(info.size)
            crc32 = zlib.crc32(content, crc32)
            members.append(Member(ending, info.offset_data, info.size))
            if ending in TEXT_ENDINGS:
                length = text_length(ending, content)
    return Entry(key, tuple(members), crc32, length)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)
