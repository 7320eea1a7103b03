"""Triton kernels for the elementwise parts of a frozen decoder block: norm and residual, rotary, silu x mul, slot
activation with dropout, forward and backward. Plain functions on tensors, no autograd: what they save and when they run
is decided outside. Ask `available()` first; the other files need triton.

    norm.py        RMS norm, with and without the residual's sum
    rotary.py      rotary positions and their inverse
    activation.py  silu(gate) * up
    slots.py       dropout(silu(scores)), the mask computed from counters
    arithmetic.py  what they share

Each is bound by memory, so each reads an input once, computes in float32, and rounds and writes an output once; each
docstring counts the bytes. Block sizes follow from the shape by a rule; nothing is tuned at run time. bf16, fp16 and
fp32; no float64. TRITON_INTERPRET=1, set before the first import, runs them on the CPU in Triton's interpreter.
"""

from importlib.util import find_spec

import torch


def available() -> bool:
    """Whether the kernels can be compiled and run in this process."""
    return torch.cuda.is_available() and find_spec("triton") is not None
