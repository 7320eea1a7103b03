"""Checkpoints among ranks: from which one all resume, and saving while training continues.

Ranks wait only until values and moments are in the first rank's memory; a thread of that rank cuts whole tensors out of
it and writes them.
"""

import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

from dsmemvp.checkpoints.checkpoint import Checkpoint, State, Tensors, read_checkpoint, save_checkpoint
from dsmemvp.checkpoints.choosing import newest_checkpoint, prune
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.training.monitor import Monitor

REQUEST = "save"
"""A file of this name in the run's folder asks for a checkpoint, and is taken away."""


Find = Callable[[Path], tuple[Checkpoint | None, list[str]]]
Guard = Callable[[], object]
"""Called before a checkpoint is written or taken away; does not return if another process has the run (lease.py)."""


def agreed_checkpoint(run: Path, ranks: Ranks, find: Find = newest_checkpoint) -> tuple[Checkpoint | None, list[str]]:
    """The newest intact checkpoint, or the one that `find` chooses, by the first rank's word, and what is wrong with
    those before it. Raises UserError, also if another rank does not see that folder."""
    found, complaints = ranks.together(lambda: find(run) if ranks.first else (None, []))
    names = ranks.gather([found.trained.parent.name] if found else [])
    if not names:
        return None, complaints
    return ranks.together(lambda: found or read_checkpoint(run / "checkpoints" / names[0])), complaints


class Saved(Protocol):
    """What a checkpoint holds of the weights. All ranks call it together."""

    def gather(self) -> Callable[[], tuple[Tensors, Tensors]]:
        """What it returns gives (values, moments) on the first rank, whole float32 tensors on the CPU by name, in any
        thread until the next `gather`."""
        ...


class CheckpointManager:
    """All ranks call the same methods at the same steps."""

    def __init__(
        self,
        run: Path,
        ranks: Ranks,
        monitor: Monitor,
        keep_last: int,
        keep_best: int,
        best_by: str = "loss",
        guard: Guard = lambda: None,
        ends: Collection[int] = (),
    ):
        """`ends`: the steps at which stages end, whose checkpoints stay."""
        self._run, self._ranks, self._monitor, self._guard = run, ranks, monitor, guard
        self._keep = keep_last, keep_best, best_by, ends
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self.saved = 0
        """Step of the last checkpoint that was begun."""

    def requested(self) -> bool:
        """Whether somebody has touched RUN/save; known to the first rank alone."""
        request = self._run / REQUEST
        if not self._ranks.first or not request.exists():
            return False
        request.unlink(missing_ok=True)
        return True

    def begin(self, state: State, weights: Saved) -> None:
        """Write a checkpoint while training continues. One that cannot be written is reported, and the next tried."""
        began = time.monotonic()
        self.wait()
        if self._error is not None:
            self._monitor.say(f"continuing without the last checkpoint: {self._error}")
            self._error = None
        gathered = weights.gather()
        self.saved = state.step
        if self._ranks.first:
            waited = time.monotonic() - began
            self._thread = threading.Thread(
                target=self._write, args=(state, gathered, waited), name="checkpoint writer"
            )
            self._thread.start()

    def finish(self) -> None:
        """Wait for the last one. Raises OSError on all ranks if it could not be written, and what else it met on the
        first one."""
        self._ranks.together(self._outcome)

    def _outcome(self) -> None:
        self.wait()
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, state: State, gathered: Callable[[], tuple[Tensors, Tensors]], waited: float) -> None:
        began = time.monotonic()
        try:
            self._guard()
            folder = save_checkpoint(self._run, state, *gathered())
        except Exception as error:  # of whatever kind: a thread's error is nobody's, and the run would end as if saved
            self._error = error
            self._monitor.say(f"step {state.step}: no checkpoint, the one before stays: {error}")
            return
        seconds = time.monotonic() - began
        self._monitor.say(
            f"step {state.step}: saved {folder} (training waited {waited:.2f} s, written in {seconds:.2f} s)"
        )
        try:
            self._guard()
            prune(self._run, state.step, *self._keep)
        except OSError as error:
            self._monitor.say(f"step {state.step}: older checkpoints cannot be taken away: {error}")
