"""Triton kernels for the elementwise parts of a frozen decoder block: norm, rotary, silu x mul, slot
activation with dropout, forward and backward. Plain functions on tensors, no autograd: what they save and when they run
is decided outside. Ask `missing()` first; the other files need triton.

    norm.py        RMS norm
    rotary.py      rotary positions and their inverse
    activation.py  silu(gate) * up
    slots.py       dropout(silu(scores)), the mask computed from counters
    arithmetic.py  what they share
    shapes.py      what they give on the meta device, where a step is traced as it runs on a GPU

Each is bound by memory, so each reads an input once, computes in float32, and rounds and writes an output once; each
docstring counts the bytes. Block sizes follow from the shape by a rule; nothing is tuned at run time. bf16, fp16 and
fp32; no float64. TRITON_INTERPRET=1, set before the first import, runs them on the CPU in Triton's interpreter.
"""

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path


def missing() -> str:
    """What this machine lacks to compile them for a GPU, or "". At its first launch triton builds the module that calls
    the driver, from C; images for running programs often have no compiler."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "triton needs a C compiler: gcc, clang or what CC names"
    header = Path(sysconfig.get_path("include", "posix_prefix")) / "Python.h"
    return "" if header.is_file() else f"triton needs Python's headers: {header} does not exist"
