"""What every part of a run needs: the recipe, the ranks, and how a run is watched and asked to end."""

from dataclasses import dataclass
from pathlib import Path

from dsmemvp.config.recipe import Recipe
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.distributed.stopping import Stop, Stopped
from dsmemvp.fault_tolerance.heartbeat import Heartbeat


@dataclass(frozen=True)
class RunContext:
    recipe: Recipe
    ranks: Ranks
    stop: Stop
    heartbeat: Heartbeat

    @property
    def folder(self) -> Path:
        """RUN, where the run writes its record and its checkpoints."""
        return Path(self.recipe.output) / self.recipe.name

    def at(self, phase: str, step: int) -> None:
        """The main thread begins `phase`, after `step` steps (see Heartbeat.listeners)."""
        self.heartbeat.at(phase, step)

    def poll(self, phase: str, step: int) -> None:
        """As `at`; raises Stopped on all ranks if one was asked to end. All ranks call it together."""
        self.at(phase, step)
        self.end_if_asked(f"{phase}, after step {step}")

    def end_if_asked(self, when: str) -> None:
        if self.ranks.any(self.stop.asked):
            raise Stopped(when)
