"""Writing shards: rows in, tar files, their indexes and their manifest out; the same rows give the same bytes.

A shard is written under a temporary name and renamed when it is whole; the manifest comes last, so that a folder with
a manifest is complete.
"""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webdataset import TarWriter

from dsmemvp.atomic_files import flush
from dsmemvp.data.index import index_shard
from dsmemvp.data.manifest import FILE, Manifest, Shard, write_manifest
from dsmemvp.data.sample import IMAGE_ENDINGS, SampleError, sample_from_row
from dsmemvp.errors import UserError


@dataclass(frozen=True)
class Row:
    """One sample to write."""

    key: str
    fields: dict[str, Any]
    image: bytes | None = None
    ending: str = "png"


def write_shards(rows: Iterable[Row], folder: Path, split: str, per_shard: int = 512) -> Manifest:
    """Write all rows below `folder` from this process. Raises SampleError for a row that would not be readable."""
    if per_shard < 1:
        raise UserError(f"samples per shard: must be positive, is {per_shard}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).unlink(missing_ok=True)
    shards: list[Shard] = []
    remaining = iter(rows)
    while chunk := list(itertools.islice(remaining, per_shard)):
        shards.append(write_shard(chunk, folder / shard_name(len(shards))))
    if not shards:
        raise UserError(f"{folder}: there is no row to write")
    manifest = Manifest(folder, split, tuple(shards))
    write_manifest(manifest)
    return manifest


def shard_name(number: int) -> str:
    return f"{number:06d}.tar"


def write_shard(rows: Iterable[Row], path: Path) -> Shard:
    """Write one shard and its index; both are whole or not there. Raises SampleError or OSError."""
    partial = path.with_suffix(".tar.partial")
    try:
        with TarWriter(str(partial), mtime=0, user="dsmemvp", group="dsmemvp") as tar:
            for row in rows:
                tar.write(_members(row))
        flush(partial)
    except BaseException:
        partial.unlink(missing_ok=True)  # on a full disk it would keep the next attempt from its space
        raise
    partial.rename(path)
    return index_shard(path)


def _members(row: Row) -> dict[str, Any]:
    # webdataset takes all after the first dot of a file name for its ending, and folders for part of the key
    if not row.key or set(row.key) & set("./\\"):
        raise SampleError(repr(row.key), "a sample's key must not be empty or contain '.', '/' or '\\'")
    sample_from_row(row.fields, row.image, row.key)
    members: dict[str, Any] = {"__key__": row.key, "json": json.dumps(row.fields, ensure_ascii=False).encode()}
    if row.image is not None:
        ending = row.ending.lower()
        if ending not in IMAGE_ENDINGS:
            raise SampleError(row.key, f"image ending {ending!r} is not one of {', '.join(IMAGE_ENDINGS)}")
        members[ending] = row.image
    return members
