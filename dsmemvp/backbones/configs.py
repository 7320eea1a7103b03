"""The configurations of the two frozen models."""

from dataclasses import dataclass
from typing import Any

from dsmemvp.backbones.vision_families import square
from dsmemvp.errors import UserError


@dataclass(frozen=True)
class Configs:
    language: Any
    """Of a family in families.py."""
    vision: Any
    """Of a family in vision_families.py."""
    side: int = 0
    """vision.resolution; 0 for the tower's own."""

    @property
    def resolution(self) -> int:
        """Height and width of the vision tower's input. Raises UserError for one that patches do not divide."""
        patch = square(self.vision.patch_size)
        if self.side % patch:
            near = max(1, round(self.side / patch)) * patch
            raise UserError(
                f"vision.resolution: {self.side} is no multiple of the vision tower's patches of {patch} pixels, as"
                f" {near} is"
            )
        return self.side or square(self.vision.image_size)

    @property
    def image_tokens(self) -> int:
        """Patches of an image."""
        return (self.resolution // square(self.vision.patch_size)) ** 2
