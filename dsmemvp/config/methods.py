"""A method's settings: they live in the method's own file, dsmemvp/prompts/NAME.py, as its class `Settings`."""

import importlib
from types import ModuleType


def method_module(name: str) -> ModuleType:
    return importlib.import_module(f"dsmemvp.prompts.{name}")
