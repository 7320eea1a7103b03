"""This project's loader beside plain webdataset, MosaicML streaming and LitData, on the same samples and cores.

    python benchmarks/loader.py                  all tables
    python benchmarks/loader.py --quick          a smoke run
    python benchmarks/loader.py --only resume    one table

MosaicML streaming and LitData take part if they are installed. They ask for other versions of this project's
packages, so install them without their dependencies, into an environment that has this project's:

    pip install --no-deps mosaicml-streaming brotli python-snappy cramjam zstd xxhash catalogue \
        litdata lightning-utilities boto3 botocore s3transfer jmespath python-dateutil six obstore requests tifffile \
        urllib3 certifi charset-normalizer

Prints Markdown tables:
- Throughput over one epoch, the opening of the data counted and the imports not, in the process itself (no workers),
  pinned to one core, batches of 32 in shuffled order. `raw` hands out the encoded bytes; `jpeg` gives them to this
  project's own collator, whichever loader they come from: tokens, pixels of 224 x 224, one batch of tensors.
- Memory: how much the peak resident memory of such a process grows over an epoch, for a data set and for one four times
  as large. Pages of mapped files are counted, although the system can take them back.
- Resuming: seconds from opening the data to the first batch, somewhere in an epoch. Plain webdataset cannot resume: it
  reads and throws away.

Each measurement has a process of its own; the contenders take turns, and the best of the rounds counts. The data has
just been written, so it lies in the page cache. A shard is 512 samples (1000 for resuming), 16 of them are shuffled
together: the block of this loader and of MosaicML's, the buffer of webdataset; LitData shuffles within shards alone.
This loader compares every sample with its checksum, the others none. Every run must deliver every sample once, and a
resumed one the batches of an uninterrupted one.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from loader_contenders import BATCH, FORMATS, LITDATA, MOSAICML, OPEN, WEBDATASET, Job
from loader_sets import Set, write, write_tokenizer
from tqdm import tqdm

TABLES = ("throughput", "memory", "resume")
GOAL = "goals: 0.95 of webdataset's throughput, first batch within 2 s anywhere"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=40_960, help="of `raw`; the other sets follow (default: 40960)")
    parser.add_argument("--folder", type=Path, help="where the data is written, and kept (default: a temporary folder)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--quick", action="store_true", help="few samples, one round")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        print(json.dumps(measure(_job(json.loads(given.job)))))
        return
    if given.quick:
        given.samples, given.rounds = 1024, 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_tokenizer(folder / "tokenizer.model")
        for table in given.only:
            {"throughput": throughput, "memory": memory, "resume": resume}[table](given, str(folder))


def _sets(samples: int) -> dict[str, Set]:
    """5 kB per sample in `raw`, photos in `jpeg`, 200 and 800 MB of `memory`, a million small samples to resume in."""
    return {
        "raw": Set("raw", samples, 512, 1000, 4000),
        "jpeg": Set("jpeg", max(256, samples // 32), 64, 60, -1),
        "memory 1": Set("memory_1", samples // 4, 64, 100, 20_000),
        "memory 4": Set("memory_4", samples, 64, 100, 20_000),
        "resume": Set("resume", round(samples * 1_000_000 / 40_960), 1000, 100, 0),
    }


def throughput(given: argparse.Namespace, folder: str) -> None:
    sets, names = _sets(given.samples), _contenders()
    jobs = {(n, kind): Job(n, kind, sets[kind], folder) for kind in ("raw", "jpeg") for n in names}
    _prepare(jobs.values())
    _in_turn([Job(n, "check", sets["raw"], folder, start=0.5) for n in names], 1)
    found = _in_turn(list(jobs.values()), given.rounds)
    print(f"\n{_about(sets['raw'])} (raw), {_about(sets['jpeg'])} (jpeg), one core, best of {given.rounds}; {GOAL}\n")
    print("| loader | raw: samples/s | per CPU second | ratio | jpeg: samples/s | per CPU second | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in names:
        cells = []
        for kind in ("raw", "jpeg"):
            wall, cpu = (_rate(found[jobs[name, kind]], unit) for unit in ("wall", "cpu"))
            base = _rate(found[jobs[WEBDATASET, kind]], "cpu")
            cells += [f"{wall:.0f}", f"{cpu:.0f}", f"{cpu / base:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def memory(given: argparse.Namespace, folder: str) -> None:
    sets, names = _sets(given.samples), _contenders()
    kinds = ("memory 1", "memory 4")
    jobs = {(n, kind): Job(n, "memory", sets[kind], folder) for kind in kinds for n in names}
    _prepare(jobs.values())
    found = _in_turn(list(jobs.values()), 1)
    print("\ngrowth of the peak resident memory over an epoch\n")
    print(f"| loader | {' | '.join(f'{_about(sets[kind])}, MiB' for kind in kinds)} |")
    print("|---|---:|---:|")
    for name in names:
        cells = [f"{found[jobs[name, kind]][0]['memory']:.0f}" for kind in kinds]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def resume(given: argparse.Namespace, folder: str) -> None:
    chosen, names = _sets(given.samples)["resume"], _contenders()
    places = (0.5,) if given.quick else (0.0, 0.5, 0.99)
    jobs: dict[tuple[str, int, float], Job] = {}
    for place, workers, name in itertools.product(places, (0, 1), names):
        if name != WEBDATASET or (workers == 0 and place < 0.99):
            jobs[name, workers, place] = Job(name, "resume", chosen, folder, place, workers)
    _prepare(jobs.values())
    found = _in_turn(list(jobs.values()), given.rounds, once=WEBDATASET)
    print(f"\nseconds to the first batch, {_about(chosen)}\n")
    print(f"| loader | {' | '.join(f'at {place:.0%}' for place in places)} |")
    print("|---|" + "---:|" * len(places))
    for workers, name in itertools.product((0, 1), names):
        if (name, workers, places[0]) in jobs:
            cells = [jobs.get((name, workers, place)) for place in places]
            texts = [f"{min(f['wall'] for f in found[job]):.2f}" if job else "not measured" for job in cells]
            how = "1 worker" if workers else "in-process"
            print(f"| {name}, {how} | {' | '.join(texts)} |", flush=True)


def _contenders() -> list[str]:
    missing = {MOSAICML: "streaming", LITDATA: "litdata"}
    left_out = [name for name, module in missing.items() if importlib.util.find_spec(module) is None]
    for name in left_out:
        print(f"{name} is not installed and left out", file=sys.stderr)
    return [name for name in FORMATS if name not in left_out]


def _about(chosen: Set) -> str:
    return f"{chosen.samples:,} samples in {len(chosen.shards):,} shards"


def _rate(rounds: list[dict], unit: str) -> float:
    return max(found["samples"] / found[unit] for found in rounds)


def _prepare(jobs) -> None:
    for path, job in {job.path: job for job in jobs}.items():
        if not path.with_name(f"{path.name}.done").is_file():
            print(f"writing {path}", file=sys.stderr)
        _run(Job(job.contender, "write", job.chosen, job.folder))


def _in_turn(jobs: list[Job], rounds: int, once: str = "") -> dict[Job, list[dict]]:
    """What the jobs find, each in every round; those of contender `once` in the first alone."""
    found: dict[Job, list[dict]] = {job: [] for job in jobs}
    todo = [job for turn in range(rounds) for job in jobs if turn == 0 or job.contender != once]
    with tqdm(todo, mininterval=2) as bar:
        for job in bar:
            bar.set_description(f"{job.kind}, {job.contender}")
            found[job].append(_run(job))
    return found


def _run(job: Job) -> dict:
    command = [sys.executable, __file__, "--job", json.dumps(asdict(job))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{job.contender}, {job.kind}: failed, see above")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _job(given: dict[str, Any]) -> Job:
    return Job(**{**given, "chosen": Set(**given["chosen"])})


# Below: inside the process of one measurement.


def measure(job: Job) -> dict:
    if job.kind == "write":
        write(job.chosen, job.path.parent, FORMATS[job.contender])
        return {}
    open_batches = OPEN[job.contender](job)
    if job.kind == "check":
        _check_resume(job)
        return {}
    if job.kind in ("raw", "jpeg"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    before = _reset_peak()
    start, cpu = time.perf_counter(), time.process_time()
    if job.kind == "resume":
        batch = next(open_batches())
        wall = time.perf_counter() - start
        if len(batch) != BATCH:
            raise SystemExit(f"{job.contender}: the first batch has {len(batch)} samples")
        print(json.dumps({"wall": wall}), flush=True)
        os._exit(0)  # workers and threads of the rest of the epoch are not waited for
    numbers = [number for batch in open_batches() for number in _numbers(batch)]
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    if sorted(map(int, numbers)) != list(range(job.chosen.samples)):
        distinct = len(set(numbers))
        raise SystemExit(f"{job.contender}: {len(numbers)} samples, {distinct} distinct, of {job.chosen.samples}")
    return {"samples": job.chosen.samples, "wall": wall, "cpu": cpu, "memory": (_peak() - before) / 2**20}


def _check_resume(job: Job) -> None:
    """The batch at the start of a resumed run is the one that an uninterrupted run has there."""
    whole = list(OPEN[job.contender](replace(job, start=0.0))())
    if next(OPEN[job.contender](job)()) != whole[job.first]:
        raise SystemExit(f"{job.contender}: a resumed run does not read as an uninterrupted one")


def _numbers(batch) -> list:
    """The samples' numbers: of encoded ones, as digits; of a batch of tensors, its running numbers."""
    return [members[0][8:16] for members in batch] if isinstance(batch, list) else list(batch.indices)


def _reset_peak() -> int:
    """Let the system forget the peak so far; -> bytes resident now."""
    with contextlib.suppress(OSError):  # not Linux: the peak since the process began is what there is
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


if __name__ == "__main__":
    main()
