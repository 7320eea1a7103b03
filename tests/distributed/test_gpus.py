"""A machine with GPUs that torch cannot use: an error, not days on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsmemvp.distributed.gpus import check_no_gpu_is_lost, lost_gpus
from dsmemvp.errors import UserError

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="torch uses this machine's GPUs")
LISTED = "#!/bin/sh\n[ \"$*\" = -L ] && echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'\n"


def smi(folder: Path, text: str) -> dict[str, str]:
    (folder / "nvidia-smi").write_text(text)
    (folder / "nvidia-smi").chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_a_machine_without_a_gpu_computes_on_its_cpu(tmp_path):
    check_no_gpu_is_lost({"PATH": str(tmp_path)}, tmp_path / "none")
    assert lost_gpus(smi(tmp_path, "#!/bin/sh\necho 'No devices found.'\nexit 6\n"), tmp_path / "none") == ""


def test_gpus_of_the_driver_or_of_nvidia_smi_are_not_lost_silently(tmp_path):
    (tmp_path / "gpus" / "0000:1b:00.0").mkdir(parents=True)
    with pytest.raises(UserError, match=r"0000:1b:00\.0.*torch cannot use.*DS_ACCELERATOR=cpu"):
        check_no_gpu_is_lost({"PATH": ""}, tmp_path / "gpus")
    found = lost_gpus(smi(tmp_path, LISTED), tmp_path / "none")
    assert "nvidia-smi lists an NVIDIA GPU (GPU 0: NVIDIA H100 80GB HBM3), but torch cannot use it" in found


def test_who_wants_the_cpu_gets_it(tmp_path):
    assert lost_gpus(smi(tmp_path, LISTED) | {"DS_ACCELERATOR": "cpu"}, tmp_path / "none") == ""


def test_a_training_run_ends_at_once_in_one_line(tmp_path, recipe_path):
    environment = {**os.environ, **smi(tmp_path, LISTED)}
    del environment["DS_ACCELERATOR"]
    command = [sys.executable, "-m", "dsmemvp", "train", str(recipe_path)]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=120)
    *_, last = done.stderr.splitlines()
    assert done.returncode == 1 and last.startswith("dsmemvp train: error: nvidia-smi lists an NVIDIA GPU"), done.stderr
