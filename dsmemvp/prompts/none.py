"""No method: the language model alone. It can be evaluated, not trained."""

from pydantic.dataclasses import dataclass

from dsmemvp.config.fields import CONFIG
from dsmemvp.config.methods import MethodSettings
from dsmemvp.prompts.interface import Sizes, VisualPrompt


@dataclass(config=CONFIG)
class Settings(MethodSettings):
    pass


class Method(VisualPrompt):
    sees_images = False
    trainable = False
    description = "no method: the language model alone"

    @classmethod
    def build(cls, settings: Settings, sizes: Sizes) -> "Method":
        return cls()
