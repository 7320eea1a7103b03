"""How far an evaluation is: a bar on a terminal, a line now and then in a log."""

import sys
import time

from tqdm import tqdm

from dsmemvp.counting import counted

EVERY = 30.0
"""Seconds between two lines."""


class Progress:
    def __init__(self, name: str, total: int, done: int, active: bool):
        """`done` of `total` samples were there already. Only the first rank's is `active`."""
        self._name, self._total, self._before, self._done = name, total, done, done
        self._lines = active and not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=name, unit="sample", disable=not active or self._lines)
        self._start = self._said = time.monotonic()

    def advance(self, samples: int) -> None:
        self._done += samples
        self._bar.update(samples)
        now = time.monotonic()
        if self._lines and now - self._said >= EVERY:
            self._said = now
            rate = (self._done - self._before) / (now - self._start)
            left = time.strftime("%H:%M:%S", time.gmtime((self._total - self._done) / rate)) if rate else "?"
            print(
                f"{time.strftime('%H:%M:%S')}  {self._name}: {self._done} of {counted(self._total, 'sample')},"
                f" {rate:.1f} samples/s, {left} left",
                flush=True,
            )

    def close(self) -> None:
        self._bar.close()
