"""Shards -> encoded samples, in a given order, through webdataset's tar reader.

A shard always yields exactly as many entries as the manifest says: where the file does not hold up, the entry is a
`BadSample`, so that every other sample keeps its place in the order. Nothing here decodes or unpickles.
"""

import functools
import hashlib
import itertools
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webdataset.tariterators import group_by_keys, tar_file_iterator

from dsmemvp.data.manifest import Manifest, Shard
from dsmemvp.data.order import Place


class SampleError(ValueError):
    """A sample that cannot be used: `SampleError(where, why)`, where `where` names file and key."""

    def __str__(self) -> str:
        return ": ".join(map(str, self.args))


@dataclass(frozen=True)
class EncodedSample:
    """One sample's tar members by their ending ("json", "png", ...), and where it came from."""

    members: dict[str, bytes]
    where: str
    index: int
    """Running number in the data set, in manifest order."""


@dataclass(frozen=True)
class BadSample:
    error: SampleError
    index: int


def read_in_order(manifest: Manifest, block: list[Place]) -> Iterator[EncodedSample | BadSample]:
    """The entries of `block` in its order. Each shard named in it is read once and held until the block ends."""
    firsts = [0, *itertools.accumulate(shard.samples for shard in manifest.shards)]
    held: dict[int, list[EncodedSample | BadSample]] = {}
    for shard, index in block:
        if shard not in held:
            held[shard] = _read_checked(manifest.path(shard), manifest.shards[shard], firsts[shard])
        yield held[shard][index]


def _read_checked(path: Path, shard: Shard, first_index: int) -> list[EncodedSample | BadSample]:
    why = _difference(path, shard.sha256)
    if why:
        return [BadSample(SampleError(str(path), why), first_index + i) for i in range(shard.samples)]
    return read_shard(path, shard.samples, first_index)


@functools.cache
def _difference(path: Path, sha256: str) -> str:
    """Why a file is not the one the manifest was written for; empty if it is.

    Checked once in each process: one flipped bit in a tar header loses an image without a word.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read ({error})"
    return "" if found == sha256 else "its checksum is not the manifest's; prepare the data again"


def read_shard(path: Path, count: int, first_index: int) -> list[EncodedSample | BadSample]:
    """All of one shard, in file order; `count` is what the manifest promises, `first_index` the first's number.

    Samples that end before a damaged place are good; where the number of samples is not the promised one, none is,
    since nothing tells which file the manifest was written for.
    """
    entries: list[EncodedSample | BadSample] = []
    why = ""
    try:
        for members in _members(path):
            where = f"{path}, sample {members.pop('__key__')}"
            entries.append(EncodedSample(members, where, first_index + len(entries)))
    except (tarfile.TarError, EOFError) as error:
        why = f"not a readable tar file ({error})"
    except OSError as error:
        why = f"cannot be read ({error})"
    except ValueError as error:
        why = str(error.args[0])
    if len(entries) != count and not why:
        why = f"holds {len(entries)} samples, the manifest says {count}; prepare the data again"
        entries = []
    bad = (BadSample(SampleError(str(path), why), first_index + i) for i in range(len(entries), count))
    return [*entries[:count], *bad]


def _members(path: Path) -> Iterator[dict[str, Any]]:
    """webdataset's grouping of tar members into samples; "__key__" holds the key, endings are lower case."""
    with path.open("rb") as file:
        if path.stat().st_size < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("shorter than one tar block")
        files = (dict(member, __url__="") for member in tar_file_iterator(file))
        for sample in group_by_keys(files):
            del sample["__url__"]
            yield sample
