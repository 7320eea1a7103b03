"""The visual prompting methods, one file or folder each, behind the interface of `interface.py`.

Add a method: write its file here, with its `Settings` and its `Method`. Its name in a recipe is the file's name, and
no other file names it.
"""

from typing import Any

from dsmemvp.config.methods import method_module
from dsmemvp.prompts.interface import Sizes, State, VisualPrompt

__all__ = ["Sizes", "State", "VisualPrompt", "build_method", "method_class"]


def method_class(name: str) -> type[VisualPrompt]:
    return method_module(name).Method


def build_method(settings: Any, sizes: Sizes) -> VisualPrompt:
    """The method a recipe names, with its initial values drawn from torch's default generator."""
    return method_class(settings.name).build(settings, sizes)
