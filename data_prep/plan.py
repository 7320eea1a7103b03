"""The plan of a preparation: which rows go into which shard, written by one process and read by all.

    OUT/preparing/plan-000000.jsonl   one line per row of shard 0: [key, fields, where, image], or [why it is left out]
    OUT/preparing/plan.json           {"made_by": {...}, "shards": 12}, written last: with it the plan is complete

`made_by` distinguishes a plan from that of another command: a preparation resumes only if it is the same. FORMAT is
to be raised whenever the same command would give other shards than before.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsmemvp.atomic_files import flush, replace_file
from dsmemvp.data.manifest import SCHEMA
from dsmemvp.data.sample import SampleError, sample_from_row
from dsmemvp.errors import UserError

FORMAT = 2
WORK = "preparing"
KEY_BYTES = 90
"""A tar header has 100 bytes for a member's name."""


@dataclass(frozen=True)
class Planned:
    """One sample to write, its image not yet read."""

    key: str
    fields: dict[str, Any]
    where: str
    """Place in the input, for messages."""
    image: str | None = None
    """Path below the folder of images."""


def key_of(*parts: Any) -> str:
    """A key of letters, digits, "_" and "-": what tar readers and file systems take for a part of the name is gone."""
    return "-".join(re.sub(r"[^\w-]+", "_", str(part)) for part in parts)


def made_by(converter: str, options: dict[str, Any], inputs: Iterable[Path]) -> dict[str, Any]:
    """What decides which samples come out. Raises FileNotFoundError for an input that is not there."""
    known: dict[str, Any] = {"format of plans": FORMAT, "schema of manifests": SCHEMA, "converter": converter}
    known |= {name: json.loads(json.dumps(value, default=_absolute)) for name, value in options.items()}
    for path in inputs:
        if not path.is_file():
            raise UserError(f"{path} does not exist")
        status = path.stat()
        known[str(path.resolve())] = [status.st_size, status.st_mtime_ns]
    return known


def read_plan(work: Path) -> tuple[dict[str, Any], int] | None:
    """(made_by, number of shards) of the plan in `work`, if there is a complete one."""
    try:
        content = json.loads((work / "plan.json").read_bytes())
        return content["made_by"], content["shards"]
    except (FileNotFoundError, KeyError, TypeError, json.JSONDecodeError):
        return None


def remove_plan(work: Path) -> None:
    """All of `work`; what is left of it after an interruption is no plan."""
    (work / "plan.json").unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def write_plan(
    rows: Iterable[Planned | SampleError], work: Path, per_shard: int, known: dict[str, Any], skip: bool
) -> int:
    """Write the plan of all rows and return its number of shards. A row that cannot be used raises its SampleError,
    or with `skip` its place in the plan holds the reason."""
    work.mkdir(parents=True, exist_ok=True)
    with naming(work):
        shards = _write_rows(rows, work, per_shard, skip)
        replace_file(work / "plan.json", json.dumps({"made_by": known, "shards": shards}).encode())
    return shards


def _write_rows(rows: Iterable[Planned | SampleError], work: Path, per_shard: int, skip: bool) -> int:
    keys: set[str] = set()
    shards = in_shard = 0
    file, first_problem = None, ""
    try:
        for row in rows:
            problem = row if isinstance(row, SampleError) else _problem(row, keys)
            if problem is not None and not skip:
                raise problem
            if file is None or (problem is None and in_shard == per_shard):
                _close(file)
                file = plan_path(work, shards).open("w", encoding="ascii")
                shards, in_shard = shards + 1, 0
            if isinstance(row, Planned) and problem is None:
                keys.add(row.key)
                in_shard += 1
                file.write(json.dumps([row.key, row.fields, row.where, row.image]) + "\n")
            else:
                file.write(json.dumps([str(problem)]) + "\n")
                first_problem = first_problem or f"; all rows were left out, the first: {problem}"
    finally:
        _close(file)
    if not keys:
        raise UserError(f"there is no row to write{first_problem}")
    return shards


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A failed write does not say in which file: it gets this one's name."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def plan_of(work: Path, shard: int) -> Iterator[Planned | str]:
    """The rows of one shard; a text is why a row is left out."""
    with plan_path(work, shard).open(encoding="ascii") as file:
        for line in file:
            entry = json.loads(line)
            yield Planned(*entry) if len(entry) > 1 else entry[0]


def plan_path(work: Path, shard: int) -> Path:
    return work / f"plan-{shard:06d}.jsonl"


def _absolute(path: Path) -> str:
    return str(path.resolve())


def _problem(row: Planned, keys: set[str]) -> SampleError | None:
    """What the input alone shows; images are looked at by the rank that writes them."""
    if row.key in keys:
        return SampleError(row.where, f"key {row.key!r} stands twice")
    if not row.key or len(row.key.encode()) > KEY_BYTES:
        return SampleError(row.where, f"key {row.key!r} is empty or longer than {KEY_BYTES} bytes")
    try:
        sample_from_row(row.fields, None, row.where)
    except SampleError as error:
        return error
    return None


def _close(file: Any) -> None:
    if file is not None:
        file.close()
        flush(Path(file.name))
