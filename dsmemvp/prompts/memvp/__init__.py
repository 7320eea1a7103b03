"""MemVP, memory-space visual prompting: the method, and the files of its published code."""

from dsmemvp.prompts.memvp.method import Method, Settings

__all__ = ["Method", "Settings"]
