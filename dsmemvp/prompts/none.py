"""No method: the language model alone. It can be evaluated, not trained."""

from pydantic.dataclasses import dataclass

from dsmemvp.config.fields import CONFIG
from dsmemvp.config.methods import MethodSettings


@dataclass(config=CONFIG)
class Settings(MethodSettings):
    pass
