"""The index of a shard: which bytes of the tar file are which sample, so that a sample is read without those before it.

    000000.tar.index    [["key", [["json", 512, 140], ["png", 1536, 9000]], 305419896, 97],
                         ["key", [], 0, 0, "why this sample cannot be used"], ...]

One line per sample, in file order: its key; ending, offset and bytes of each member that is ever read; the CRC-32 of
those members; and the characters of text that a model would see, by which samples are dealt to ranks.
"""

import gc
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dsmemvp.data.durable import replace_file
from dsmemvp.data.manifest import Manifest, Shard
from dsmemvp.data.sample import IMAGE_ENDINGS
from dsmemvp.data.tar import Entry, Member, scan

SUFFIX = ".index"


class ShardIndex(Sequence[Entry]):
    """The entries of a shard, made from the index's rows as they are asked for: most are only ever weighed."""

    def __init__(self, rows: list[list]):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, sample):
        key, members, *rest = self._rows[sample]
        return Entry(key, tuple(Member(*member) for member in members), *rest)

    def weight(self, sample: int) -> tuple[int, bool]:
        """(characters of text, whether there is an image)"""
        row = self._rows[sample]
        return row[3], any(member[0] in IMAGE_ENDINGS for member in row[1])


def index_path(shard: Path) -> Path:
    return shard.with_name(shard.name + SUFFIX)


def index_shard(shard: Path, ignored: Counter[str] | None = None) -> Shard:
    """Write the index of a shard file and return its line for the manifest; `ignored` counts endings of members that
    are never read. Raises ValueError or OSError naming the file."""
    line, content = describe(shard, Counter() if ignored is None else ignored)
    replace_file(index_path(shard), content)
    return line


def describe(shard: Path, ignored: Counter[str]) -> tuple[Shard, bytes]:
    """A shard file's line for the manifest, and its index. Raises ValueError or OSError naming the file."""
    entries = scan(shard, ignored)
    lines = ",\n".join(json.dumps(_row(entry), ensure_ascii=False) for entry in entries)
    content = f"[{lines}]\n".encode("utf-8", "surrogateescape")
    with shard.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    line = Shard(shard.name, len(entries), shard.stat().st_size, digest, hashlib.sha256(content).hexdigest())
    return line, content


def read_index(manifest: Manifest, shard: int) -> ShardIndex:
    """A shard's entries. Raises FileNotFoundError or ValueError where its index is not the one of the manifest."""
    expected = manifest.shards[shard]
    path = index_path(manifest.folder / expected.name)
    again = manifest.again
    try:
        if manifest.remote:
            content = manifest.remote.fetch_index(path.name, expected.index_sha256)
        else:
            content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; {again}") from None
    if hashlib.sha256(content).hexdigest() != expected.index_sha256:
        raise ValueError(f"{path} is not the index that the manifest was written for; {again}")
    with _no_collection():
        rows = json.loads(content.decode("utf-8", "surrogateescape"))
    if len(rows) != expected.samples:
        raise ValueError(f"{path} holds {len(rows)} samples, the manifest says {expected.samples}; {again}")
    return ShardIndex(rows)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Thousands of new lists make the garbage collector look through all there are, again and again: two thirds of the
    time that reading an index took."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _row(entry: Entry) -> list:
    return list(entry if entry.problem else entry[:-1])
