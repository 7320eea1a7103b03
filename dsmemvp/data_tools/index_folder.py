"""`dsmemvp index DIR`: makes any folder of WebDataset shards usable, or checks one that already is.

The folder may come from elsewhere, img2dataset for example: what counts is that it holds .tar files.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dsmemvp.counting import counted
from dsmemvp.data.index import SUFFIX, index_path, index_shard
from dsmemvp.data.manifest import FILE, Manifest, Shard, open_manifest, write_manifest
from dsmemvp.data.pool import over_shards
from dsmemvp.data.remote import Cache
from dsmemvp.data.sample import BadSample
from dsmemvp.data.stream import read_each
from dsmemvp.errors import UserError

NAMED = 5
"""Shards, and samples of a shard, that are named; the others are counted."""


def index_folder(folder: Path, split: str, processes: int = 0) -> list[str]:
    """Write dataset.json and the shards' indexes; what is to be said of it, line by line. Raises UserError
    naming every shard that cannot be used; then no manifest is left."""
    paths = _shards(folder)
    (folder / FILE).unlink(missing_ok=True)
    found = list(over_shards(_index, paths, "index", processes))
    wrong = [result for result, _ in found if isinstance(result, str)]
    if wrong:
        raise UserError(f"{_first(wrong)}. Fetch these shards again or take them away")
    shards = tuple(shard for shard, _ in found if isinstance(shard, Shard))
    manifest = Manifest(folder, split or folder.name, shards)
    if manifest.samples == 0:
        raise UserError(f"{folder}: its shards hold no sample")
    write_manifest(manifest)
    _drop_leftovers(folder, paths)
    ignored = sum((counter for _, counter in found), Counter[str]())
    return [
        f"{counted(manifest.samples, 'sample')} in {counted(len(shards), 'shard')} -> {folder / FILE}",
        *_about(ignored),
    ]


def check_folder(folder: Path, processes: int = 0) -> list[str]:
    """Read every byte of an indexed folder again and compare with the manifest; what is to be said of it. Raises
    UserError naming the shards that differ, and their samples that do."""
    manifest = open_manifest(str(folder), Cache(folder, 0, pipes=False))
    alone = [replace(manifest, shards=(shard,)) for shard in manifest.shards]
    wrong = [message for message in over_shards(_check, alone, "check", processes) if message]
    listed = {shard.name for shard in manifest.shards}
    new = [f"{path.name} is not in {FILE}" for path in _shards(folder) if path.name not in listed]
    if wrong:  # a manifest written now would call the damage right
        raise UserError(f"{folder}: {_first(wrong + new)}. Fetch or prepare these shards again, with their indexes")
    if new:
        raise UserError(f"{folder}: {_first(new)}. Take it away, or take it in with `dsmemvp index {folder}`")
    return [
        f"{counted(manifest.samples, 'sample')} in {counted(len(manifest.shards), 'shard')}: all as"
        f" {folder / FILE} says"
    ]


def _shards(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        packed = [*folder.glob("*.tar.gz"), *folder.glob("*.tgz"), *folder.glob("*.tar.zst")]
        also = "; unpack the compressed ones: samples are read by their place in the file" if packed else ""
        raise UserError(f"{folder} holds no .tar file{also}")
    return paths


def _index(path: Path) -> tuple[Shard | str, Counter[str]]:
    """The shard's line for the manifest, or why it cannot be used; and what of it is never read."""
    ignored: Counter[str] = Counter()
    try:
        return index_shard(path, ignored), ignored
    except (ValueError, OSError) as error:
        return str(error), ignored


def _check(alone: Manifest) -> str:
    """What is wrong with a manifest's only shard; empty if nothing is."""
    (shard,), path = alone.shards, alone.path(0)
    try:
        right = _sha256(path) == shard.sha256
        if _sha256(index_path(path)) != shard.index_sha256:
            and_it = "" if right else f", and neither is {shard.name}"
            return f"{index_path(path).name} is not the index that {FILE} was written for{and_it}"
        if right:
            return ""
        bad = [f"sample {key}: {why}" for key, why in _damaged(alone)]
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} does not exist"
    except OSError as error:
        return str(error)
    return f"{shard.name} is not the file that was indexed: " + (
        _first(bad) or "its samples are, what is around them not"
    )


def _sha256(path: Path) -> str:
    """Raises OSError, also for a pipe, which would be waited for."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path.name} is not a regular file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(alone: Manifest) -> Iterator[tuple[str, str]]:
    """Key of each sample whose bytes are not those that were indexed, and how that shows."""
    for entry in read_each([alone]):
        if isinstance(entry, BadSample):
            where, why = entry.error.args
            yield where.rpartition(", sample ")[2], why


def _first(messages: list[str]) -> str:
    more = f"; and {len(messages) - NAMED} more" if len(messages) > NAMED else ""
    return f"{'; '.join(messages[:NAMED])}{more}"


def _drop_leftovers(folder: Path, paths: list[Path]) -> None:
    """Indexes of shards that are no longer there."""
    for path in folder.glob(f"*.tar{SUFFIX}"):
        if path.with_name(path.name.removesuffix(SUFFIX)) not in paths:
            path.unlink()


def _about(ignored: Counter[str]) -> list[str]:
    return [f"never read: {', '.join(f'{n} x .{ending}' for ending, n in ignored.most_common())}"] if ignored else []
