"""MITP, memory-inspired temporal prompt interaction: re-implementation from the published description."""

from dsmemvp.prompts.mitp.method import Method
from dsmemvp.prompts.mitp.settings import Settings

__all__ = ["Method", "Settings"]
