"""How far long work is: a bar on a terminal, elsewhere a line every half minute."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from dsmemvp.counting import counted
from dsmemvp.log import log


class Progress:
    """Used as a context manager, or closed. A unit "B" is bytes."""

    every = 30.0
    """Seconds between two lines."""

    def __init__(
        self,
        name: str,
        total: int,
        unit: str,
        active: bool = True,
        done: int = 0,
        say: Callable[[str], object] = log.info,
    ):
        """`done` of `total` were there before. One that is not `active`, as on the other ranks, shows nothing."""
        self.done, self.lines = done, active and not sys.stderr.isatty()
        self._name, self._total, self._unit, self._before, self._say = name, total, unit, done, say
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=name,
            unit=unit,
            unit_scale=unit == "B",
            disable=not active or self.lines,
        )
        self._start = self._said = time.monotonic()

    def advance(self, number: int = 1) -> None:
        self.done += number
        self._bar.update(number)
        now = time.monotonic()
        if self.lines and now - self._said >= self.every:
            self._said = now
            self._say(self._line(now))

    def close(self, total: bool = False) -> None:
        """`total`: work that took so long that there were lines ends with one for the whole."""
        self._bar.close()
        if total and self._said > self._start:
            self._say(self._line(time.monotonic()))

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _line(self, now: float) -> str:
        rate = (self.done - self._before) / max(now - self._start, 1e-9)
        left = time.strftime("%H:%M:%S", time.gmtime((self._total - self.done) / rate)) if rate else "?"
        if self._unit == "B":
            amounts = f"{self.done / 1e9:.2f} of {self._total / 1e9:.2f} GB, {rate / 1e9:.2f} GB/s"
        else:
            slow = f"{1 / rate:.0f} s per {self._unit}" if rate else "?"
            pace = f"{rate:.1f} {self._unit}s/s" if rate >= 0.1 else slow
            amounts = f"{self.done} of {counted(self._total, self._unit)}, {pace}"
        return f"{self._name}: {amounts}, {left} left"
