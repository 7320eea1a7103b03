"""The visual prompting methods, one file each, behind the interface of `interface.py`.

Add a method: write its file here, with its `Settings`, and a branch in `build_method`.
"""

from typing import Any

from dsmemvp.prompts.input_space import InputSpace
from dsmemvp.prompts.interface import Sizes, VisualPrompt
from dsmemvp.prompts.memvp import MemVP

__all__ = ["Sizes", "VisualPrompt", "build_method"]


def build_method(method: Any, sizes: Sizes) -> VisualPrompt:
    """The method a recipe names, with its initial values drawn from torch's default generator."""
    if method.name == "memvp":
        return MemVP(
            sizes,
            hidden=method.hidden,
            slots=method.slots,
            visual_scale=method.visual_scale,
            output_scale=method.output_scale,
            dropout=method.dropout,
        )
    if method.name == "input_space":
        return InputSpace(
            sizes,
            hidden=method.hidden,
            rank=method.lora_rank,
            alpha=method.lora_alpha,
            dropout=method.dropout,
            targets=tuple(method.lora_targets),
        )
    return VisualPrompt()
