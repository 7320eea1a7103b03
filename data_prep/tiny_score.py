"""What a tiny model got right of the cases held out, beside what guessing gets right."""

import time
from collections.abc import Callable
from dataclasses import dataclass

Report = Callable[[str], None]


def reporter(start: float) -> Report:
    """Prints lines with the seconds since `start`."""
    return lambda line: print(f"[{time.monotonic() - start:6.1f} s] {line}", flush=True)


@dataclass(frozen=True)
class Score:
    right: float
    """Share of the cases that the model got right."""
    guessing: float
    """Share that the commonest answers of the training data get right."""
    cases: int

    @property
    def learned(self) -> bool:
        """Whether the model is better than guessing by more than two standard errors of so many cases."""
        return self.right - self.guessing > 2 * (self.guessing * (1 - self.guessing) / self.cases) ** 0.5

    def __str__(self) -> str:
        return f"{self.right:.3f} (guessing: {self.guessing:.3f})"
