"""How often a run was started without getting further: what fails again and again must not be requeued for ever.

RUN/starts.jsonl has a line for every start: when, from which step, and in which Slurm job. Lines of another form, which
half a line of a start that was cut off is as well, are passed over.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from dsmemvp.counting import counted
from dsmemvp.errors import UserError
from dsmemvp.json_text import parse_json

FILE = "starts.jsonl"
LOOKED_AT = 1 << 20
"""Bytes at the end of the file: some ten thousand starts."""


def count_start(run: Path, step: int, environment: Mapping[str, str], most_fruitless: int) -> None:
    """Called by one rank when the step is known at which the run resumes. Raises UserError if a requeued Slurm job has
    started from this step `most_fruitless` times already, and OSError."""
    job, restart = environment.get("SLURM_JOB_ID", ""), int(environment.get("SLURM_RESTART_COUNT") or 0)
    run.mkdir(parents=True, exist_ok=True)
    if (run / FILE).exists() and not (run / FILE).is_file():
        raise UserError(f"{run / FILE} is not a regular file; the run writes its starts there, move it away")
    with (run / FILE).open("ab+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LOOKED_AT))
        end = file.read()
        fruitless = 0
        for other, started_from in _latest_first(end):
            if other != job or started_from < step:
                break
            fruitless += 1
        if job and restart and fruitless >= most_fruitless:
            raise UserError(
                f"job {job} was started {counted(fruitless, 'time')} from step {step} and got no further; the log says"
                " why. It is not requeued any more; submit it again when that is mended"
            )
        row = {"from": step, "job": job, "restart": restart, "time": time.strftime("%Y-%m-%d %H:%M:%S")}
        file.write(b"\n" * (not end.endswith(b"\n") and bool(end)) + json.dumps(row).encode() + b"\n")


def _latest_first(end: bytes) -> Iterator[tuple[str, int]]:
    """(job, step) of the starts."""
    for line in reversed(end.split(b"\n")):
        try:
            row = parse_json(line, FILE)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("job"), str) and isinstance(row.get("from"), int):
            yield row["job"], row["from"]
