"""DVP, dynamic visual prompting: the method, its two kinds of modules, and the search for its layer."""

from dsmemvp.prompts.dvp.method import Method, Settings

__all__ = ["Method", "Settings"]
