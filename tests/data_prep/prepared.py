"""Runs converters, in this process or on MPI ranks, and reads what they wrote."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import psutil
from launch import mpirun

from dsmemvp.data.manifest import read_manifest
from dsmemvp.data.sample import Sample, read_sample
from dsmemvp.data.stream import read_all

REPOSITORY = Path(__file__).resolve().parents[2]


def samples(folder: Path) -> list[Sample]:
    return [read_sample(entry) for entry in read_all(read_manifest(folder))]


def keys(folder: Path) -> list[str]:
    return [sample.where.rpartition("sample ")[2] for sample in samples(folder)]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def here(converter, monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Runs a converter's main() in this process: (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", [converter.__name__, *map(str, arguments)])
    code = converter.main()
    return code, *capsys.readouterr()


def start(name: str, *arguments, ranks: int = 1, largest_file: int = 0, **environment: str) -> subprocess.Popen:
    """Starts `python -m data_prep.NAME`, or a text of Python, under mpirun where there are to be several ranks."""
    program = ["-c", name] if "\n" in name else ["-m", f"data_prep.{name}"]
    command = [sys.executable, *program, *map(str, arguments)]
    limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))) if largest_file else None
    if ranks > 1:
        command = [mpirun(), "--oversubscribe", "--allow-run-as-root", "-n", str(ranks), *command]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, cwd=REPOSITORY, text=True, stdout=pipe, stderr=pipe, preexec_fn=limit)


def run(name: str, *arguments, **how) -> tuple[int, str, str]:
    """start(), waited for: (exit code, stdout, stderr)."""
    process = start(name, *arguments, **how)
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    return process.returncode, out, err


def kill(process: subprocess.Popen) -> None:
    """SIGKILL, to the launcher and to all that it started."""
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.kill()
    process.communicate()
