"""No method: the language model alone. It can be evaluated, not trained."""

from typing import Any

from dsmemvp.prompts.interface import Sizes, VisualPrompt


class Method(VisualPrompt):
    sees_images = False

    @classmethod
    def build(cls, settings: Any, sizes: Sizes) -> "Method":
        return cls()
