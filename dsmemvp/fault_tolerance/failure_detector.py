"""Which rank is lost, from heartbeats and the times they came at; no sockets and no clock of its own."""

from dataclasses import dataclass, replace

from dsmemvp.distributed.stopping import REQUEUE, UNEXPECTED, USER_ERROR
from dsmemvp.fault_tolerance.heartbeat_protocol import RankStatus

GATHER = 1.5
"""Seconds to wait for more news after the first bad one: the others' errors follow from the cause within these."""
NAMED = 8
"""At most so many ranks are named."""


@dataclass
class _Heard:
    """A rank, as rank 0 knows it."""

    beat: RankStatus
    last: float
    """When its last heartbeat came."""
    moved: float
    """When it last got on to something else."""


class FailureDetector:
    """`silence` and `standstill` in seconds, as in Heartbeat. `now` is always the time in seconds, on one clock."""

    def __init__(self, world: int, silence: float, standstill: float, now: float):
        self._silence, self._standstill = silence, standstill
        # one that is lost before its first heartbeat is missed as well
        self._ranks = {rank: _Heard(RankStatus(rank, "a host not known yet"), now, now) for rank in range(world)}
        self._died: list[int] = []
        self._bad_news: float | None = None

    @property
    def done(self) -> bool:
        """Whether all ranks have said goodbye."""
        return all(heard.beat.bye for heard in self._ranks.values())

    def hear(self, beat: RankStatus, now: float) -> None:
        old = self._ranks[beat.rank]
        if old.beat.bye:
            return
        if old.beat.error:  # later errors of a rank follow from its first
            beat = replace(beat, error=old.beat.error, code=old.beat.code, follows=old.beat.follows)
        moved = old.moved if old.beat.moves == beat.moves else now
        self._ranks[beat.rank] = _Heard(beat, now, moved)
        if beat.error and self._bad_news is None:
            self._bad_news = now

    def lose(self, rank: int, now: float) -> None:
        """The connection of a rank was closed."""
        if not self._ranks[rank].beat.bye:
            self._died.append(rank)
            self._bad_news = now if self._bad_news is None else self._bad_news

    def forgive(self, seconds: float) -> None:
        """Nobody listened for so long: the others have missed nothing."""
        for heard in self._ranks.values():
            heard.last, heard.moved = heard.last + seconds, heard.moved + seconds

    def verdict(self, now: float) -> tuple[str, int] | None:
        """What the run ends with, and the exit code; or None."""
        if self._bad_news is not None:
            return self._of_bad_news() if now - self._bad_news > GATHER else None
        working = {rank: heard for rank, heard in self._ranks.items() if not heard.beat.bye}
        silent = [rank for rank, heard in working.items() if now - heard.last > self._silence]
        if silent:
            return self._with_others(f"no sign of life for {self._silence:g} s of {self._names(silent)}", silent)
        stuck = {rank: h.beat.moves for rank, h in working.items() if now - h.moved > self._standstill}
        if not stuck:
            return None
        behind = [rank for rank, moves in stuck.items() if moves == min(stuck.values())]
        behind = [rank for rank in behind if not working[rank].beat.waiting] or behind
        everyone = "no rank has" if len(stuck) == len(working) else "not every rank has"
        what = f"{everyone} moved on for {self._standstill:g} s; furthest behind: {self._names(behind)}"
        return self._with_others(what, behind)

    def _of_bad_news(self) -> tuple[str, int]:
        failed = sorted((h.beat for h in self._ranks.values() if h.beat.error), key=lambda beat: beat.follows)
        for beat in failed:
            if beat.code == USER_ERROR and not self._died:
                return f"error: {beat.error}", USER_ERROR
        for beat in failed:
            if beat.code == REQUEUE:  # whatever else ended a rank, the run was to end
                return f"rank {beat.rank} on {beat.host} {beat.error}", REQUEUE
        if self._died:
            return self._with_others(f"{self._names(self._died)} died", self._died)
        return self._with_others(f"{self._names([failed[0].rank])} failed: {failed[0].error}", [failed[0].rank])

    def _names(self, ranks: list[int]) -> str:
        beats = [self._ranks[rank].beat for rank in sorted(ranks)]
        names = [f"rank {b.rank} on {b.host} (after step {b.step}, {b.doing}{_at(b.where)})" for b in beats[:NAMED]]
        return ", ".join(names) + (f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else "")

    def _with_others(self, what: str, culprits: list[int]) -> tuple[str, int]:
        """The verdict, and what the other ranks were waiting in."""
        places: dict[str, list[int]] = {}
        for rank, heard in sorted(self._ranks.items()):
            if rank not in culprits and not heard.beat.bye:
                places.setdefault(f"{heard.beat.doing}{_at(heard.beat.where)}", []).append(rank)
        for place, ranks in places.items():
            listed = ", ".join(map(str, ranks[:NAMED])) + (" ..." if len(ranks) > NAMED else "")
            what += f"\n  rank {listed}: {place}"
        return what, UNEXPECTED


def _at(where: str) -> str:
    return f" at {where}" if where else ""
