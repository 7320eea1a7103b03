"""What training keeps in mind of its data, and how long it takes to begin anywhere, from 1e5 to 4e8 samples.

    python benchmarks/growth.py --work FOLDER          up to 400 M samples in 40,000 shards, and a long run's record
    python benchmarks/growth.py --work FOLDER --quick  a few thousand samples, to try it

The shards of a data set are one real shard of 10,000 samples and its index, linked under as many names as it takes: 20
MB on the disk. Each row is measured in processes of its own, on the first rank of 64, with blocks of 16 shards and
global batches of 1024 samples:

- open: manifest, fingerprint and order, as every rank does it; look up: all shards by name and size, as the first does;
- first batch: seconds to this rank's encoded samples of the first, the middle and the last step of an epoch;
- step: milliseconds for each of the steps that follow the one in the middle;
- sent: pickled bytes of what goes to a worker; worker: memory of its own that a process gains by taking it up and going
  through three blocks of shards, without the samples' bytes; evaluation: pickled bytes of its list of samples.

The record of a long run is wound back by 100 steps; memory is what the process's peak has risen by.
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from data_prep.shards import Row, write_shard
from dsmemvp.data.balancing import CostModel, Weight, balance
from dsmemvp.data.index import index_path
from dsmemvp.data.manifest import Manifest, check_files, open_manifest, write_manifest
from dsmemvp.data.order import FileOrder, Order, Place, Source
from dsmemvp.data.remote import Cache
from dsmemvp.data.shard_table import Shard
from dsmemvp.data.stream import Reader

RANKS, GLOBAL_BATCH, BLOCK_SHARDS = 64, 1024, 16
SAMPLES, PER_SHARD = (100_000, 1_000_000, 10_000_000, 400_000_000), 10_000
LINES = {"metrics": 1_000_000, "order": 10_000, "skipped": 100_000}
BACK = 100
"""Steps by which the record is wound back."""
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the data")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        what, path = given.job
        if what == "sent":
            manifest, order = _open(Path(path))
            sys.stdout.buffer.write(pickle.dumps(([manifest], order)))
            return
        print(json.dumps({"opening": opening, "worker": worker, "record": record}[what](Path(path))))
        return
    scale = 100 if given.quick else 1
    columns = "samples|shards|open, s|look up, s|first batch: at 0%, s|at 50%|at 100%|step, ms|sent, MiB|worker, MiB"
    print(f"| {columns.replace('|', ' | ')} | evaluation, MiB |\n{'|---:' * 11}|")
    for samples in SAMPLES[: 2 if given.quick else None]:
        folder = write_set(given.work, samples // scale, PER_SHARD // scale)
        found = _in_a_process("opening", folder) | _in_a_process("worker", folder)
        shown = [f"{found[name]:.{digits}f}" for name, digits in SHOWN]
        print(f"| {samples // scale:,} | {found['shards']:,} | {' | '.join(shown)} |", flush=True)
    print(
        "\n| record | lines | size, MB | wound back in, s | peak, MiB | lines counted in, s |\n|---" + "|---:" * 5 + "|"
    )
    for name, lines in LINES.items():
        path = write_record(given.work, name, lines // scale)
        size, found = path.stat().st_size, _in_a_process("record", path)
        counted = f"{found['count']:.3f}" if name == "skipped" else ""
        numbers = f"{size / 1e6:.1f} | {found['seconds']:.4f} | {found['peak']:.1f} | {counted}"
        print(f"| {path.name} | {lines // scale:,} | {numbers} |", flush=True)


SHOWN = [("open", 2), ("look up", 2), ("first", 3), ("middle", 3), ("last", 3), ("step", 1), ("sent", 2)]
SHOWN += [("memory", 1), ("evaluation", 2)]
"""Columns of the table, and their digits."""


def _in_a_process(what: str, path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, *_job(what, path)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def _job(what: str, path: Path) -> list[str]:
    return ["--work", str(path.parent), "--job", what, str(path)]


def write_set(work: Path, samples: int, per_shard: int) -> Path:
    """A folder of linked shards and their manifest."""
    folder, real = work / f"{samples}-{per_shard}", work / f"real-{per_shard}.tar"
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"question": "Which is it?", "choices": ["this", "that"], "answer": 0}
    rows = (Row(f"{number:08d}", {**fields, "id": number}, b"x" * 400) for number in range(per_shard))
    known = write_shard(rows, real)
    shards = []
    for number in range(samples // per_shard):
        path = folder / f"{number:06d}.tar"
        for link, to in ((path, real), (index_path(path), index_path(real))):
            link.unlink(missing_ok=True)
            os.link(to, link)
        shards.append(Shard(path.name, known.samples, known.bytes, known.sha256, known.index_sha256))
    write_manifest(Manifest(folder, "growth", shards))
    return folder


def write_record(work: Path, name: str, lines: int) -> Path:
    path = work / f"{name}.jsonl"
    rows: dict[str, Callable[[int], dict[str, Any]]] = {
        "metrics": lambda step: {"loss/train": 1 / step, **{f"speed/{n}": step * 1.1 + n for n in range(10)}},
        "order": lambda step: {"samples": [step * 512 + n for n in range(512)]},
        "skipped": lambda step: {"position": step % 512, "sample": f"data/{step:06d}.tar, sample s: cannot be decoded"},
    }
    with path.open("w") as file:
        for step in range(1, lines + 1):
            file.write(json.dumps({"step": step, **rows[name](step)}) + "\n")
    return path


def _open(folder: Path) -> tuple[Manifest, Order]:
    manifest = open_manifest(str(folder), Cache(folder, 0, False))
    return manifest, Order([Source(manifest.counts)], 0, BLOCK_SHARDS, min(GLOBAL_BATCH, manifest.samples // 8))


def opening(folder: Path) -> dict[str, float]:
    start = time.perf_counter()
    manifest, order = _open(folder)
    assert manifest.fingerprint
    found: dict[str, float] = {"open": time.perf_counter() - start, "shards": len(manifest.shards)}
    found["sent"] = len(pickle.dumps(([manifest], order))) / MIB
    start = time.perf_counter()
    check_files(manifest)
    found["look up"] = time.perf_counter() - start
    for name, step in (("first", 0), ("middle", order.steps // 2), ("last", order.steps - 1)):
        start = time.perf_counter()
        order = Order(order.sources, 0, BLOCK_SHARDS, order.global_batch)  # one that remembers nothing
        reader = Reader([manifest], order.near_shards)
        reader.read(_own(reader, order, step))
        found[name] = time.perf_counter() - start
        if name == "middle":
            start, steps = time.perf_counter(), min(50, order.steps - step - 1)
            for later in range(step + 1, step + 1 + steps):
                reader.read(_own(reader, order, later))
            found["step"] = (time.perf_counter() - start) * 1000 / steps
    found["evaluation"] = len(pickle.dumps(FileOrder(manifest.counts))) / MIB
    return found


def _own(reader: Reader, order: Order, step: int) -> list[Place]:
    """The first rank's samples of a global batch."""
    places = order.batch(step)
    weights = [Weight(*reader.weight(place)) for place in places]
    ranks = RANKS if len(places) >= RANKS else 1
    return [places[at] for part in balance(weights, CostModel(), ranks, len(places) // ranks)[0] for at in part]


def worker(folder: Path) -> dict[str, float]:
    """As a worker gets it: the manifest and the order arrive pickled, made by another process."""
    pickled = subprocess.run(
        [sys.executable, __file__, *_job("sent", folder)], stdout=subprocess.PIPE, check=True
    ).stdout
    process = psutil.Process()
    before = most = process.memory_full_info().uss
    manifests, order = pickle.loads(pickled)
    del pickled
    reader = Reader(manifests, order.near_shards)
    per_block = BLOCK_SHARDS * manifests[0].counts[0] // order.global_batch
    first = order.steps // 2
    for step in range(first, min(order.steps, first + 3 * per_block)):
        for place in _own(reader, order, step):
            reader.entry(place)
        most = max(most, process.memory_full_info().uss)
    return {"memory": (most - before) / MIB}


def record(path: Path) -> dict[str, float]:
    from dsmemvp.training.record import count_rows, wind_back  # brings DeepSpeed with it

    lines = json.loads(_last_line(path))["step"]
    before, start = _peak(), time.perf_counter()
    wind_back(path, lines - BACK)
    found = {"seconds": time.perf_counter() - start, "peak": (_peak() - before) / MIB}
    start = time.perf_counter()
    assert count_rows(path) == lines - BACK
    return {**found, "count": time.perf_counter() - start}


def _last_line(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-min(1 << 16, path.stat().st_size), os.SEEK_END)
        return file.read().splitlines()[-1]


def _peak() -> int:
    """Bytes that this process has had resident at most."""
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
