"""Losses and gradients that are not finite, and losses that jump: left out, counted, reported."""

import math
import statistics
from collections import deque

from dsmemvp.errors import UserError
from dsmemvp.training.monitor import Monitor

BEFORE, LEAST = 100, 20
"""Steps that a loss is compared with; fewer than LEAST say nothing."""


class Diverged(UserError):
    """Too many steps without a finite loss or gradient."""


class Health:
    """All ranks see the same numbers, so all decide alike."""

    def __init__(self, monitor: Monitor, most_not_finite: int, spike: float, not_finite: int):
        self._monitor, self._most, self._spike = monitor, most_not_finite, spike
        self._losses: deque[float] = deque(maxlen=BEFORE)
        self.not_finite = not_finite
        """Steps of the run that updated nothing."""
        self.spikes = 0

    def begin_stage(self) -> None:
        """Losses of another kind, which are not compared with those before."""
        self._losses.clear()

    def check(self, step: int, loss: float, norm: float) -> bool:
        """Whether the step updated anything. Raises Diverged at one too many that did not."""
        if math.isfinite(loss) and math.isfinite(norm):
            self._look_for_spike(step, loss)
            return True
        self.not_finite += 1
        what = "gradient norm is not finite" if math.isfinite(loss) else f"loss is {loss}"
        said = f"step {step}: the {what}; nothing was updated"
        if self.not_finite > self._most:
            raise Diverged(
                f"{said}. {self.not_finite} such steps are more than training.most_not_finite = {self._most}; the last"
                " checkpoint is good: lower training.learning_rate, or look at the samples of these steps"
                " (data.record_order=true)"
            )
        self._monitor.say(f"{said} ({self.not_finite} of {self._most} such steps that a run may have)")
        return False

    def _look_for_spike(self, step: int, loss: float) -> None:
        if self._spike and len(self._losses) >= LEAST:
            mean, deviation = statistics.fmean(self._losses), statistics.pstdev(self._losses)
            if loss > mean + self._spike * deviation:
                self.spikes += 1
                self._monitor.say(
                    f"step {step}: loss spike, {loss:.4f}; the {len(self._losses)} steps before: {mean:.4f}"
                    f" +- {deviation:.4f}"
                )
        self._losses.append(loss)
