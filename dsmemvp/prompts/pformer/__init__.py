"""P-Former: re-implementation from the published description and the authors' released code (BLIText)."""

from dsmemvp.prompts.pformer.method import Method
from dsmemvp.prompts.pformer.settings import Settings

__all__ = ["Method", "Settings"]
