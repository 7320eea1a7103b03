"""Progress of a preparation: the shards that are finished, counted by their files."""

import sys
import time
from functools import partial
from pathlib import Path

from data_prep.finished import count_finished
from dsmemvp import progress

LOOK_S, LOOK_LOG_S = 1.0, 60.0
"""Between two looks at the files: for a bar, and for lines in a log."""


def say(converter: str, message: str, error: bool = False) -> None:
    print(f"data_prep.{converter}: {message}", file=sys.stderr if error else sys.stdout, flush=True)


class Progress:
    """Counts the finished shards of all ranks by their files; silent if this rank is not `telling`."""

    def __init__(self, converter: str, work: Path, shards: int, telling: bool):
        self._work, self._telling = work, telling
        done = count_finished(work) if telling else 0
        self._shown = progress.Progress(converter, shards, "shard", telling, done, say=partial(say, converter))
        self._every = LOOK_LOG_S if self._shown.lines else LOOK_S
        self._looked = time.monotonic()

    def tick(self) -> None:
        """May be called as often as one likes."""
        now = time.monotonic()
        if self._telling and now - self._looked >= self._every:
            self._looked = now
            self._look()

    def _look(self) -> None:
        self._shown.advance(count_finished(self._work) - self._shown.done)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._telling and not self._shown.lines:
            self._look()
        self._shown.close()
