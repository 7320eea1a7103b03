"""The engine of all converters: planned rows + a folder of images -> shards, on any number of ranks.

One rank writes the plan (plan.py); then every rank takes its part of the shards that are not finished and marks each
when it is whole (finished.py). Nothing else is known of a preparation: it resumes there with any number of ranks,
and the same bytes come out. dataset.json comes last.
"""

import argparse
import itertools
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data_prep.finished import Finished, find_finished, mark_finished, read_finished, remove_shards_except
from data_prep.pictures import Pictures
from data_prep.plan import WORK, Planned, made_by, naming, plan_of, read_plan, remove_plan, write_plan
from data_prep.progress import Progress, say
from data_prep.ranks import Ranks
from data_prep.shards import Row, shard_name, write_shard
from dsmemvp.counting import counted
from dsmemvp.data.manifest import FILE, Manifest, write_manifest
from dsmemvp.data.sample import SampleError
from dsmemvp.errors import UserError

HARMLESS = ("out", "on_bad_row")
"""Options with which finished shards stay the same."""
RESUMES = "finished shards are kept, the same command resumes"


@dataclass(frozen=True)
class Job:
    """What is to be prepared, from which rows."""

    converter: str
    given: argparse.Namespace
    """The options that all converters have (command.py), and its own."""
    images: Path
    inputs: tuple[Path, ...]
    """Files whose change means another result."""
    rows: Iterable[Planned | SampleError]
    """Read only by the rank that plans."""

    @property
    def work(self) -> Path:
        return self.given.out / WORK


def run(job: Job, ranks: Ranks) -> int:
    """Prepare as one of the ranks; an error is printed once. Returns the exit code."""
    try:
        error = _prepare(job, ranks)
        if error and ranks.first:
            say(job.converter, f"error: {error}", error=True)
        ranks.wait()  # the launcher ends the others as soon as one ends with 1
        return 1 if error else 0
    except KeyboardInterrupt:
        if ranks.first:
            say(job.converter, f"interrupted; {RESUMES}", error=True)
        ranks.abort()
        return 130
    except BaseException:  # an error of ours; in one process it goes its usual way
        if ranks.size > 1:
            traceback.print_exc()
            ranks.abort()
        raise


def _prepare(job: Job, ranks: Ranks) -> str:
    """Returns the error in one line, the same on every rank; empty if all went well."""
    error: str = ""
    begun: tuple[list[int], int] = ([], 0)
    if ranks.first:
        try:
            begun = _begin(job)
        except (ValueError, OSError) as raised:
            error = _reported(raised)
    error, (missing, shards) = ranks.share((error, begun))
    if error:
        return error
    with Progress(job.converter, job.work, shards, ranks.first) as progress:
        problem = _write_shards(job, missing[ranks.rank :: ranks.size], progress)
        problems = sorted(p for p in ranks.collect(problem, progress.tick) if p is not None)
    if problems:
        return problems[0][1]
    if ranks.first:
        try:
            _finish(job, shards)
        except (ValueError, OSError) as raised:
            error = _reported(raised)
    return ranks.share(error)


def _begin(job: Job) -> tuple[list[int], int]:
    """Plan, or find the plan of an earlier attempt. Returns the unfinished shards and the number of all."""
    given, work = job.given, job.work
    known = made_by(job.converter, {k: v for k, v in vars(given).items() if k not in HARMLESS}, job.inputs)
    old = read_plan(work)
    if old is not None and old[0] == known:
        shards = old[1]
        found = find_finished(given.out, work)
        done = {number for number, finished in found if given.on_bad_row == "skip" or not finished.left_out}
        say(job.converter, f"resuming in {given.out}: {len(done)} of {counted(shards, 'shard')} finished")
    else:
        if old is not None:
            changed = ", ".join(sorted(k for k in known.keys() | old[0].keys() if known.get(k) != old[0].get(k)))
            say(job.converter, f"beginning anew in {given.out}: changed since the last attempt: {changed}")
        remove_plan(work)
        if not (given.out / FILE).exists():
            remove_shards_except(given.out, set())
        # a complete data set stays whole until there is something to put in its place
        shards = write_plan(job.rows, work, given.per_shard, known, given.on_bad_row == "skip")
        done = set()
    (given.out / FILE).unlink(missing_ok=True)
    (work / "stopped").unlink(missing_ok=True)
    remove_shards_except(given.out, done)
    return [number for number in range(shards) if number not in done], shards


def _write_shards(job: Job, numbers: list[int], progress: Progress) -> tuple[int, str] | None:
    """Returns (shard, error) if this rank could not continue."""
    pictures = Pictures(job.images, job.given)
    for number in numbers:
        if (job.work / "stopped").exists():  # by a rank that failed: its error is to be reported now, not in hours
            return None
        try:
            _write_one(job, number, pictures)
        except (ValueError, OSError) as raised:
            with suppress(OSError):
                (job.work / "stopped").touch()
            return number, f"{_reported(raised)} ({RESUMES})"
        progress.tick()
    return None


def _write_one(job: Job, number: int, pictures: Pictures) -> None:
    path = job.given.out / shard_name(number)
    left_out: list[str] = []
    with naming(path):
        rows = _rows(job, number, pictures, left_out)
        first = next(rows, None)
        shard = write_shard(itertools.chain([first], rows), path) if first else None
        mark_finished(job.work, number, Finished(shard, tuple(left_out)))


def _rows(job: Job, number: int, pictures: Pictures, left_out: list[str]) -> Iterator[Row]:
    """One shard's rows with their images; what cannot be used raises SampleError or goes to `left_out`."""
    for planned in plan_of(job.work, number):
        try:
            if isinstance(planned, str):
                raise SampleError(planned)
            image, ending = pictures.read(planned.image, planned.where)
        except SampleError as error:
            if job.given.on_bad_row == "fail":
                raise
            left_out.append(str(error))
        else:
            yield Row(planned.key, planned.fields, image, ending)


def _finish(job: Job, shards: int) -> None:
    given = job.given
    results = [read_finished(job.work, number) for number in range(shards)]
    written = tuple(result.shard for result in results if result.shard)
    left_out = [message for result in results for message in result.left_out]
    if not written:
        raise UserError(f"there is no row to write: all {len(left_out)} were left out, the first: {left_out[0]}")
    manifest = Manifest(given.out, given.split or given.out.resolve().name, written)
    with naming(given.out / FILE):
        write_manifest(manifest)
    remove_plan(job.work)
    print(f"{counted(manifest.samples, 'sample')} in {counted(len(written), 'shard')} -> {given.out}")
    for message in left_out:
        print(f"left out: {message}")


def _reported(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
