"""`make gpu` without a GPU: every stage is run whatever became of the others, and passes on the CPU."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from first_run import ENOUGH, ROOT, Stage, environment_of, install, markdown, run, stages, table

PROGRAMS = {
    "passes": "print('| a | b |')",
    "fails": "raise ValueError('the third | one\\nand more')",
    "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "hangs": "import subprocess, sys, time\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "time.sleep(60)",
    "exits": "import sys; sys.exit(3)",
    "step after all": "print('| c |')",
}
IN_OTHER_TESTS = ("kernel ", "loader", "answers, 7B, no graph", "step, 13B")
"""Stages that tests/backbones/test_kernels.py runs on the CPU, or that do nothing there, or the same as another one."""


def programs(folder: Path, limit: float = 60) -> list[Stage]:
    made = []
    for name, text in PROGRAMS.items():
        (folder / f"{name}.py").write_text(text)
        made.append(Stage(name, 1.5 if name == "hangs" else limit, (sys.executable, str(folder / f"{name}.py"))))
    return made


def test_every_stage_is_run_whatever_became_of_the_others(tmp_path):
    environment, told = {**os.environ, "PYTHONFAULTHANDLER": "1"}, []
    todo = [*programs(tmp_path), Stage("large", 60, ("false",), gib=30)]
    results = run(todo, environment, tmp_path / "report", gib=24, tell=told.append)
    assert [r.stage.name for r in results] == [*PROGRAMS, "large"] and len(told) == len(results)
    assert [r.outcome for r in results] == ["ok", "failed", "failed", "failed", "failed", "ok", "left out"]
    errors = {r.stage.name: r.error for r in results}
    assert errors["fails"] == "ValueError: the third | one"
    assert errors["crashes"].startswith("killed by SIGSEGV")
    assert errors["hangs"].startswith("no end after 2 s: File") and "hangs.py" in errors["hangs"]
    assert errors["exits"] == "exit code 3" and errors["large"] == "needs a GPU of 30 GiB, here are 24"
    assert "Traceback" in (tmp_path / "report" / "fails.err").read_text()
    assert table(results)[3] == f"| fails | failed | {results[1].seconds:.1f} | ValueError: the third \\| one |"
    block = markdown(results, "2026-01-02", "make gpu")
    assert block[0] == "### First run on a GPU, 2026-01-02" and "`make gpu`" in block and block[-1] == "| c |"


def test_what_a_hanging_stage_has_started_ends_with_it(tmp_path):
    (stage,) = (s for s in programs(tmp_path) if s.name == "hangs")
    run([stage], dict(os.environ), tmp_path / "report", gib=0, tell=lambda _: None)
    running = subprocess.run(["ps", "-eo", "args"], stdout=subprocess.PIPE, text=True).stdout
    assert str(tmp_path) not in running


def test_what_there_is_no_time_for_is_told(tmp_path):
    results = run(programs(tmp_path)[:2], dict(os.environ), tmp_path / "report", gib=0, enough=0.5, tell=lambda _: None)
    assert [r.outcome for r in results] == ["failed", "failed"]
    assert results[1].error == "not run: the 0 s for all stages are over"


def test_on_a_gpu_all_stages_have_time(tmp_path):
    on_gpu = stages("cuda", tmp_path)
    assert [s.name for s in on_gpu] == [s.name for s in stages("cpu", tmp_path)]
    assert all(s.limit < ENOUGH for s in on_gpu)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_machine_without_a_cuda_device_is_told_in_a_line():
    command = [sys.executable, str(ROOT / "tests" / "gpu" / "first_run.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("make gpu: torch finds no CUDA device here") and done.stderr.count("\n") == 1


def test_what_is_not_installed_comes_from_a_folder_of_wheels(tmp_path):
    pytest.importorskip("pip")
    wheels, into = tmp_path / "wheels", tmp_path / "into"
    wheels.mkdir()
    for name in ("torch", "made_up_for_this_test"):  # the first one is installed already
        about = f"{name}-1.0.dist-info"
        with zipfile.ZipFile(wheels / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", "VALUE = 7\n")
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
    install(wheels, into)
    assert (into / "made_up_for_this_test.py").is_file() and not (into / "torch.py").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("gpu")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(s.name, marks=[pytest.mark.slow] if s.name == "step, 7B" else [])
        for s in stages("cpu", Path("work"))
        if not s.name.startswith(IN_OTHER_TESTS)
    ],
)
def test_each_stage_passes_on_the_cpu(name, folder):
    """In their order: later ones of the 20 steps compare with the first."""
    todo = [s for s in stages("cpu", folder / "work") if s.name == name]
    environment = environment_of("cpu", folder) | {"OMP_NUM_THREADS": "1"}
    (result,) = run(todo, environment, folder / "report", gib=float("inf"), tell=lambda _: None)
    text = (folder / "report").glob("*.err")
    assert result.outcome == "ok", result.error + "".join(path.read_text() for path in text)
