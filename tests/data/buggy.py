"""A run whose collator has a bug, as a process of its own: `buggy.py SHARDS TOKENIZER`."""

import sys
from dataclasses import dataclass

from dsmemvp.data.loader import Share, training_steps
from dsmemvp.data.manifest import read_manifest
from dsmemvp.data.order import Order, Source


@dataclass(frozen=True)
class Buggy:
    tokenizer_path: str
    blind: bool = False
    reserved: tuple = ()
    max_length: int = 200

    def batch(self, tokenizer, entries, epoch=0):
        return self.misspelt


if __name__ == "__main__":
    from pathlib import Path

    manifest = read_manifest(Path(sys.argv[1]))
    order = Order([Source(manifest.counts)], 1, 2, 8)
    list(training_steps([manifest], order, Buggy(sys.argv[2]), Share(0, 1, 8), range(4), 2))
