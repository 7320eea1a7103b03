"""Record which shards of a preparation are finished: OUT/preparing/done-000000.json, written when a shard is whole.

It holds the shard's line for the manifest and what was left out of it. Files are found in their folder's list and not
asked for by name before they exist: a network file system may remember for a while that one is not there.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.shards import shard_name
from dsmemvp.atomic_files import replace_file
from dsmemvp.data.index import index_path
from dsmemvp.data.manifest import Shard

OURS = re.compile(r"(?:partial-)?(\d{6,})\.tar(?:\.partial|\.index)?")
"""Names of shards and their indexes, also while they are written."""


@dataclass(frozen=True)
class Finished:
    shard: Shard | None
    """None if all of its rows were left out: there is no file then."""
    left_out: tuple[str, ...]


def mark_finished(work: Path, number: int, finished: Finished) -> None:
    content = {"shard": asdict(finished.shard) if finished.shard else None, "left_out": finished.left_out}
    replace_file(_path(work, number), json.dumps(content).encode())


def read_finished(work: Path, number: int) -> Finished:
    content = json.loads(_path(work, number).read_bytes())
    return Finished(Shard(**content["shard"]) if content["shard"] else None, tuple(content["left_out"]))


def find_finished(out: Path, work: Path) -> Iterator[tuple[int, Finished]]:
    """The shards that are marked and whose files are still there."""
    for path in work.glob("done-*.json"):
        number = int(path.stem.removeprefix("done-"))
        finished = read_finished(work, number)
        shard, file = finished.shard, out / shard_name(number)
        if shard is None or (file.is_file() and file.stat().st_size == shard.bytes and index_path(file).is_file()):
            yield number, finished


def count_finished(work: Path) -> int:
    return sum(1 for _ in work.glob("done-*.json"))


def remove_shards_except(out: Path, numbers: set[int]) -> None:
    """Shards of an earlier preparation, and what an interruption left."""
    kept = {name for number in numbers for name in (shard_name(number), index_path(out / shard_name(number)).name)}
    for path in out.glob("*.tar*"):
        if OURS.fullmatch(path.name) and path.name not in kept:
            path.unlink(missing_ok=True)


def _path(work: Path, number: int) -> Path:
    return work / f"done-{number:06d}.json"
