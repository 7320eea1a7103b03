"""What a preparation tells while it runs: a bar of shards on a terminal, a line now and then in a log."""

import sys
import time
from pathlib import Path

from tqdm import tqdm

from data_prep.finished import count_finished
from dsmemvp.counting import counted

LOOK_S = 1.0
LINE_S = 60.0


def say(converter: str, message: str, error: bool = False) -> None:
    print(f"data_prep.{converter}: {message}", file=sys.stderr if error else sys.stdout, flush=True)


class Progress:
    """Counts the finished shards of all ranks by their files; silent where this rank is not the one that tells."""

    def __init__(self, converter: str, work: Path, shards: int, telling: bool):
        self._converter, self._work, self._shards = converter, work, shards
        self._telling = telling
        self._looked = self._told = time.monotonic()
        self._bar = tqdm(total=shards, desc=converter, unit="shard", disable=not (telling and sys.stderr.isatty()))

    def tick(self) -> None:
        """May be called as often as one likes."""
        now = time.monotonic()
        if not self._telling or now - self._looked < LOOK_S:
            return
        self._looked = now
        if not self._bar.disable:
            self._bar.update(self._done() - self._bar.n)
        elif now - self._told >= LINE_S:
            self._told = now
            say(self._converter, f"{self._done()} of {counted(self._shards, 'shard')}")

    def _done(self) -> int:
        return count_finished(self._work)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if not self._bar.disable:
            self._bar.update(self._done() - self._bar.n)
        self._bar.close()
