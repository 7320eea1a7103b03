"""slurm/train.sbatch as a job that a test follows."""

import json
import time
from pathlib import Path


class Job:
    """With one rank on each of two nodes, in a folder of its own."""

    def __init__(self, slurm, script: Path, arguments: list[str], folder: Path, name: str):
        """`arguments`: the recipe and settings, without an output; `name`: the run's."""
        folder.mkdir(exist_ok=True)
        self.slurm, self.folder, self.log = slurm, folder, folder / "log"
        self.run = folder / "runs" / name
        self._script, self._arguments = script, [*arguments, f"output={folder / 'runs'}"]
        self.number = ""

    def submit(self, *settings: str, options: tuple[str, ...] = ("--nodes=2",)) -> "Job":
        on_cpus = ["--gpus-per-node=0", "--ntasks-per-node=1", "--cpus-per-task=1", f"--output={self.log}"]
        self.number = self.slurm.sbatch(*on_cpus, *options, self._script, *self._arguments, *settings)
        return self

    def until_step(self, step: int, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not any(found >= step for found in self.losses()):
            assert time.monotonic() < end, self.text()
            time.sleep(0.05)

    def until_said(self, words: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while words not in self.text():
            assert time.monotonic() < end, self.text()
            time.sleep(0.1)

    def until_done(self, seconds: float = 240) -> dict[str, str]:
        try:
            return self.slurm.wait_for(self.number, "COMPLETED", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text()}") from None

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def losses(self) -> dict[int, float]:
        return {row["step"]: row["loss/train"] for row in self._rows("metrics") if "loss/train" in row}

    def order(self) -> dict[int, list[int]]:
        return {row["step"]: row["samples"] for row in self._rows("order")}

    def starts(self) -> list[int]:
        """The steps that it was started from."""
        return [row["from"] for row in self._rows("starts")]

    def rank(self, rank: int) -> int:
        """The process of a rank, as numbered outside of the nodes."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().split(b"\0")
                variables = (process / "environ").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if command[1:3] == [b"-m", b"dsmemvp"] and {
                f"SLURM_JOB_ID={self.number}".encode(),
                f"SLURM_PROCID={rank}".encode(),
            } <= set(variables):
                return int(process.name)
        raise AssertionError(f"no process of rank {rank}\n{self.text()}")

    def _rows(self, name: str) -> list[dict]:
        path = self.run / f"{name}.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}\n")]
