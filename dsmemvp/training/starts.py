"""How often a run was started without getting further: what fails again and again must not be requeued for ever.

RUN/starts.jsonl has a line for every start: when, from which step, and in which Slurm job.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

FILE = "starts.jsonl"


def note_start(run: Path, step: int, environment: Mapping[str, str], most_fruitless: int) -> None:
    """Called by one rank, when it is known where the run goes on. Raises ValueError where a requeued Slurm job has
    started from this step `most_fruitless` times already."""
    job, path = environment.get("SLURM_JOB_ID", ""), run / FILE
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    # a start that was cut off may have left half a line
    rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("}\n")]
    fruitless = 0
    for row in reversed(rows):
        if row["job"] != job or row["from"] < step:
            break
        fruitless += 1
    if job and environment.get("SLURM_RESTART_COUNT", "0") != "0" and fruitless >= most_fruitless:
        raise ValueError(
            f"job {job} was started {fruitless} times from step {step} and got no further; the log says why. It is not"
            " requeued any more; submit it again when that is mended"
        )
    run.mkdir(parents=True, exist_ok=True)
    row = {"from": step, "job": job, "restart": int(environment.get("SLURM_RESTART_COUNT") or 0)}
    with path.open("a", encoding="utf-8") as file:
        if text and not text.endswith("\n"):
            file.write("\n")
        file.write(json.dumps({**row, "time": time.strftime("%Y-%m-%d %H:%M:%S")}) + "\n")
