"""A machine with NVIDIA GPUs whose torch cannot use them. DeepSpeed would compute on the CPU without a word."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch

from dsmemvp.errors import UserError

DRIVER = Path("/proc/driver/nvidia/gpus")
"""Where the driver lists its GPUs. Windows' Linux has none of this, but an nvidia-smi."""


def lost_gpus(environment: Mapping[str, str], driver: Path = DRIVER) -> str:
    """What is wrong if the machine has GPUs and torch none; "" if all is well, or DS_ACCELERATOR says that they are not
    wanted."""
    if "DS_ACCELERATOR" in environment or torch.cuda.is_available():
        return ""
    seen = _of_driver(driver) or _of_nvidia_smi(environment)
    return f"{seen}, but torch cannot use it: {_reason(environment)}" if seen else ""


def check_no_gpu_is_lost(environment: Mapping[str, str], driver: Path = DRIVER) -> None:
    """Raises UserError."""
    if problem := lost_gpus(environment, driver):
        raise UserError(f"{problem}; {TODO}")


TODO = "mend it, or set DS_ACCELERATOR=cpu to compute on the CPU"


def _of_driver(driver: Path) -> str:
    try:
        found = sorted(driver.iterdir())
    except OSError:
        return ""
    return f"{driver} lists an NVIDIA GPU ({found[0].name})" if found else ""


def _of_nvidia_smi(environment: Mapping[str, str]) -> str:
    program = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if program is None:
        return ""
    try:
        out = subprocess.run([program, "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{program} is there, and does not say which GPUs ({error})"
    gpus = [line for line in out.stdout.splitlines() if line.startswith("GPU ")]
    return f"nvidia-smi lists an NVIDIA GPU ({gpus[0].partition(' (UUID')[0]})" if gpus else ""


def _reason(environment: Mapping[str, str]) -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    hidden = environment.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return f"CUDA_VISIBLE_DEVICES={hidden!r} hides it" + _said_by_cuda()
    return "the job may not have been given it (--gpus-per-node)" + _said_by_cuda()


def _said_by_cuda() -> str:
    try:
        torch.cuda.init()
    except Exception as error:  # of the driver or of torch: whatever it says may help
        return f" ({' '.join(str(error).split())[:300]})"
    return ""
