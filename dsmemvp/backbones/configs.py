"""The configurations of the two frozen models."""

from dataclasses import dataclass
from typing import Any

from dsmemvp.backbones.vision import square


@dataclass(frozen=True)
class Configs:
    language: Any
    """Of a family in families.py."""
    vision: Any

    @property
    def resolution(self) -> int:
        """Height and width of the vision tower's input."""
        return square(self.vision.image_size)
