"""The visual prompting methods that a recipe can name: files and folders of dsmemvp/prompts/, and their settings."""

import dataclasses
import difflib
import importlib
import pkgutil
from dataclasses import fields
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from dsmemvp.config.fields import CONFIG
from dsmemvp.errors import UserError

PACKAGE = "dsmemvp.prompts"
SHARED = ("interface", "parts")
"""Modules of the package that are no methods."""
DEFAULT = "memvp"
"""The method of a recipe that names none. No other file but the method's own names it."""


@dataclasses.dataclass(frozen=True)
class VisionFeatures:
    """What a method takes of the vision tower."""

    block: int = 0
    """The block that they come from, counted from the tower's last as -1, the ones behind it being neither built nor
    loaded; 0 for the family's own (backbones/vision_families.py)."""
    class_token: bool = False
    """Whether tokens before the patches (class and register tokens) stay."""
    norm: bool = True
    """Whether the tower's last norm is put on them."""


@dataclass(config=CONFIG)
class MethodSettings:
    """The group `method:` of a recipe. A method's `Settings` are a subclass, with this decorator."""

    name: str = ""
    """The visual prompting method: a file or folder of dsmemvp/prompts/, whose name it is."""

    def __post_init__(self) -> None:
        package, _, module = type(self).__module__.rpartition(f"{PACKAGE}.")
        self.name = module.partition(".")[0] if package == "" else self.name

    def vision_features(self) -> VisionFeatures:
        return VisionFeatures()

    def text_tower(self) -> Literal["decoder", "encoder"]:
        """What model.language_model is."""
        return "decoder"

    def classifies(self) -> bool:
        """Whether it puts samples into classes, and writes no text."""
        return False

    def stage_names(self) -> tuple[str, ...]:
        """Of the stages that a run goes through, in order: those of its method's `stages`."""
        return ("train",)

    def known_stages(self) -> tuple[str, ...]:
        """What a recipe's group `stages` may name: these, and those that other settings would add."""
        return self.stage_names()

    def trains_norms(self) -> bool:
        """Whether the weights of the language model's norms are trained, from the base's values on."""
        return False


def method_names() -> list[str]:
    """Listed without importing the package, which takes torch's seconds."""
    spec = find_spec(PACKAGE)
    assert spec is not None and spec.submodule_search_locations is not None
    found = (module.name for module in pkgutil.iter_modules(spec.submodule_search_locations))
    return sorted(name for name in found if name not in SHARED and not name.startswith("_"))


def method_module(name: str) -> ModuleType:
    """The module of a method: its `Settings` and its `Method`. Raises UserError for a name that is none."""
    names = method_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"method.name: must be one of {', '.join(names)}, not {name!r}{hint}")
    # by name, so that a new method is one new file and no other file has to know of it; only the chosen one is imported
    return importlib.import_module(f"{PACKAGE}.{name}")


def settings_class(name: str) -> type[MethodSettings]:
    return method_module(name).Settings


def method_settings(name: str = DEFAULT, **values: Any) -> MethodSettings:
    """The settings of a method, with defaults for those not given."""
    return settings_class(name)(**values)


def setting_names(name: str) -> list[str]:
    return [field.name for field in fields(settings_class(name))]
