"""Ranks as srun starts them: a process for each, and where one has ended the others are killed soon."""

import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAM = Path(__file__).parent / "programs" / "with_fault.py"
GRACE = 12
"""Seconds that the others have when one has ended: longer than they need to say why."""
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
# programs import helpers from tests/, and the package from this tree even where another one is installed
ENVIRONMENT["PYTHONPATH"] = f"{Path(__file__).parent}:{Path(__file__).parents[1]}"


class _Server:
    """Forks ranks that have everything imported: a start takes 2 s instead of 10."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), "--serve"],
            env=os.environ | ENVIRONMENT,
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self._process.kill)

    def ask(self, **what):
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


_server = functools.cache(_Server)


class Rank:
    """A process. `fresh` ones import everything themselves, as users' do."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path, fresh: bool):
        self.log = log
        log.write_text("")
        self._fresh: subprocess.Popen | None = None
        if fresh:
            with log.open("a") as file:
                own = [sys.executable, str(PROGRAM), *command]
                self._fresh = subprocess.Popen(own, env=environment, stdout=file, stderr=file, start_new_session=True)
        self.pid = (
            self._fresh.pid if self._fresh else _server().ask(command=command, environment=environment, log=str(log))
        )
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self._fresh.poll() if self._fresh else _server().ask(poll=self.pid)
        return self.code

    def kill(self) -> int:
        while self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # its loader's workers
        return self.code or 0


@dataclass
class Ended:
    codes: list[int]
    """Of every rank; negative for one that a signal has ended."""
    said: list[str]
    """Output and errors of every rank."""

    @property
    def text(self) -> str:
        return "\n".join(f"--- rank {i}\n{text}" for i, text in enumerate(self.said))


class Ranks:
    """A context, so that nothing is left running."""

    def __init__(
        self,
        arguments: list[str],
        folder: Path,
        fault: str = "",
        on: int = 1,
        ranks: int = 2,
        fresh: bool = False,
        program: Sequence[str] = ("-m", "dsmemvp"),
        **variables: str,
    ):
        """`program`: that, or the path of a script."""
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = os.environ | ENVIRONMENT | variables
        environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_PORT": str(port)}
        environment |= {"FAULT": fault, "FAULT_RANK": str(on) if fault else "", "FAULT_ONCE": str(folder)}
        command = ["python", *program, *arguments]
        self.processes = [
            Rank(command, {**environment, "RANK": str(r), "LOCAL_RANK": str(r)}, folder / f"rank-{r}.log", fresh)
            for r in range(ranks)
        ]

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *error) -> None:
        for process in self.processes:
            process.kill()

    def said(self, rank: int) -> str:
        return self.processes[rank].log.read_text(errors="replace")

    def until_said(self, rank: int, text: str, limit: float = 120) -> None:
        until = time.monotonic() + limit
        while text not in self.said(rank):
            assert time.monotonic() < until and self.processes[rank].poll() is None, self.said(rank)
            time.sleep(0.02)

    def ended(self, limit: float = 180) -> Ended:
        until = time.monotonic() + limit
        while any(process.poll() is None for process in self.processes) and time.monotonic() < until:
            if any(process.poll() is not None for process in self.processes):
                until = min(until, time.monotonic() + GRACE)
            time.sleep(0.05)
        codes = [process.kill() for process in self.processes]
        return Ended(codes, [self.said(rank) for rank in range(len(codes))])


def run(arguments: list[str], folder: Path, fault: str = "", on: int = 1, **more) -> Ended:
    """Start the ranks once and wait for their end."""
    with Ranks(arguments, folder, fault=fault, on=on, **more) as ranks:
        return ranks.ended()


def rows(run: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


def numbers(run: Path, name: str = "loss/train") -> dict[int, float]:
    """Of metrics.jsonl: step -> number; a step that stands there twice is an error."""
    found = [(row["step"], row[name]) for row in rows(run, "metrics") if name in row]
    assert len(dict(found)) == len(found)
    return dict(found)


def steps(run: Path) -> list[int]:
    """Of the checkpoints."""
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))
