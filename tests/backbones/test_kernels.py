"""The Triton kernels: their results in Triton's interpreter, and on a GPU where there is one; what they load and store
when compiled for a GPU that is not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from programs.kernels_against_formulas import CHECKS, DTYPES

from dsmemvp.backbones.kernels import missing

PROGRAMS = Path(__file__).parent.parent / "programs"
CASES = [f"{check} {dtype}" for check in CHECKS for dtype in DTYPES]
TENSORS = {  # that each kernel reads and writes; "narrow" counts the heads' weight and the rows' keys, of a few bytes
    "rms_norm": {"ld": 2, "st": 1, "narrow": 0},  # x, weight
    "rms_norm of heads": {"ld": 1, "st": 1, "narrow": 1},  # x
    "rms_norm_backward": {"ld": 3, "st": 1, "narrow": 0},  # gradient, x, weight
    "rotate": {"ld": 4, "st": 2, "narrow": 0},  # halves of x, and of cos and sin the first
    "rotate back": {"ld": 4, "st": 2, "narrow": 0},
    "silu_mul": {"ld": 2, "st": 1, "narrow": 0},
    "silu_mul_backward": {"ld": 3, "st": 2, "narrow": 0},
    "slot_activation": {"ld": 1, "st": 1, "narrow": 4},
    "slot_activation_backward": {"ld": 2, "st": 1, "narrow": 4},
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")


def said(program: str, *arguments: str, **environment: str) -> dict:
    """By a process of its own, since triton decides at its import whether it interprets."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    command = [sys.executable, str(PROGRAMS / program), *arguments]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def interpreted() -> dict:
    return said("kernels_against_formulas.py", "cpu", TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.fixture(scope="module")
def on_gpu() -> dict:
    return said("kernels_against_formulas.py", "cuda")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict:
    return said("kernels_compiled.py", "90", TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("case", CASES)
def test_results_in_the_interpreter(interpreted, case):
    assert interpreted[case] is None, interpreted[case]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_results_on_a_gpu(on_gpu, case):
    assert not missing()
    assert on_gpu[case] is None, on_gpu[case]


@pytest.mark.parametrize("launch", TENSORS)
def test_each_tensor_is_read_once_and_written_once_in_the_widest_accesses(compiled, launch):
    assert {kind: compiled[launch][kind] for kind in ("ld", "st", "narrow")} == TENSORS[launch]


def test_shifts_of_the_masks_are_logical_when_compiled(compiled):
    assert compiled["slot_activation"]["signed shifts"] == 0


def test_what_a_machine_lacks_is_told(monkeypatch, tmp_path):
    assert missing() == ""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "C compiler" in missing()
    monkeypatch.setenv("CC", "cc")
    assert missing() == ""
