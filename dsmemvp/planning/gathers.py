"""Which parameters DeepSpeed gathers when, from the order of a model's modules.

This follows deepspeed/runtime/zero/partitioned_param_coordinator.py of DeepSpeed 0.19 (fetch_sub_module,
release_sub_module, __params_to_release): at every module, parameters are fetched for it and up to `prefetch` elements
more in the order of use, so that fetching runs ahead until `max_live` elements are whole. A module's parameters are
released after it unless the next `max_reuse` elements have them again, or fetching has already passed their next use.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from dsmemvp.planning.sharding import Sharding, prefetched
from dsmemvp.planning.trace import Event, Trace

NEVER = -1


@dataclass(frozen=True)
class Gathers:
    """In a steady state, after the first step."""

    micro_steps: tuple[tuple[int, ...], ...]
    """Micro-step of a step -> every parameter gathered in it, as often as it is."""
    live_bytes: int
    """Most bytes of parameters that are not persistent, whole at the same time."""
    coalesced_bytes: int
    """Most bytes gathered at once: they lie twice in memory for a moment."""
    collectives: int = 0
    """That gather, in a step's last micro-step."""


def simulate(trace: Trace, sharding: Sharding, micro_steps: int) -> Gathers:
    """The gathers of one optimizer step of `micro_steps` micro-steps."""
    persistent = {i for i, p in enumerate(trace.parameters) if p.numel <= sharding.persistence}
    coordinator = _Coordinator(trace, sharding, persistent)
    # the first micro-step records the order; what is released where is decided for good in the second
    coordinator.micro_step(recording=True)
    coordinator.micro_steps(micro_steps - 1)
    per_step: list[tuple[int, ...]] = []
    for _ in range(2):
        coordinator.update()
        per_step = coordinator.micro_steps(micro_steps)
    return Gathers(tuple(per_step), coordinator.peak, coordinator.largest, coordinator.calls)


@dataclass
class _Coordinator:
    trace: Trace
    sharding: Sharding
    persistent: set[int]
    available: set[int] = field(default_factory=set)
    live: int = 0
    peak: int = 0
    largest: int = 0
    calls: int = 0

    def __post_init__(self) -> None:
        self.fetches = [e.module for e in self.trace.events if e.fetch]
        self.numel = [p.numel for p in self.trace.parameters]
        self.bytes = [p.numel * p.item for p in self.trace.parameters]
        self.uses = [(p, step) for step, m in enumerate(self.fetches) for p in sorted(set(self._held_by(m)))]
        self.decided: dict[tuple[int, int], set[int]] = {}
        blocks = [sum(self.numel[p] for p in self.trace.inside[module]) for module in self.trace.whole]
        given = self.sharding.prefetch
        self.ahead = given if given is not None else prefetched(max(blocks, default=0))
        self.holders: dict[int, set[int]] = {i: set() for i in range(len(self.numel))}

    def _held_by(self, module: int) -> tuple[int, ...]:
        """What is gathered for a module."""
        return self.trace.inside[module] if module in self.trace.whole else self.trace.own[module]

    def update(self) -> None:
        """The optimizer's step: everything is released, then the persistent parameters are gathered."""
        self.available = set(self.persistent)
        self.live = self.peak = self.largest = 0
        for holders in self.holders.values():
            holders.clear()

    def micro_steps(self, number: int) -> list[tuple[int, ...]]:
        """What each gathers. Once one leaves behind what it has found, all that follow are like it."""
        gathered: list[tuple[int, ...]] = []
        while len(gathered) < number:
            before = self._state()
            gathered.append(self.micro_step())
            if before == self._state():
                gathered += gathered[-1:] * (number - len(gathered))
        return gathered

    def _state(self) -> tuple[Any, ...]:
        """What one micro-step leaves to the next."""
        return self.available.copy(), self.live, len(self.decided), [h.copy() for h in self.holders.values()]

    def micro_step(self, recording: bool = False) -> tuple[int, ...]:
        self.recording = recording
        self.queue = deque(() if recording else self.uses)
        self.fetched_for = [NEVER] * len(self.numel)
        self.step = self.counted = self.calls = 0
        self.gathered: list[int] = []
        self.backward: dict[int, None] = {}  # modules whose backward has begun, in that order
        self.recomputed: dict[int, set[int]] = {}
        for event in self.trace.events:
            if event.fetch:
                self._fetch(event)
            else:
                self._release(event)
        for module in list(self.backward):
            left = set(self._held_by(module)) | self.recomputed.pop(module, set())
            for p in left:
                self.holders[p].discard(module)
            self._drop(left - self.persistent)
        return tuple(self.gathered)

    def _fetch(self, event: Event) -> None:
        own = set(self._held_by(event.module))
        if not event.forward:
            self.backward[event.module] = None
        self._gather(own - self.available)
        for p in own:
            self.holders[p].add(event.module)
            if event.again and self.backward and not self.trace.parameters[p].trained:
                # a recomputed layer belongs to the module whose backward asked for it
                owner = next(reversed(self.backward))
                self.recomputed.setdefault(owner, set()).add(p)
                self.holders[p].add(owner)
        self._advance({p for p in own if self.fetched_for[p] < self.step})
        self._prefetch()
        self.step += 1

    def _advance(self, wanted: set[int]) -> None:
        passed: set[int] = set()
        while self.queue and len(passed) < len(wanted):
            p, step = self.queue.popleft()
            self.fetched_for[p] = step
            passed.add(p)

    def _prefetch(self) -> None:
        most = min(self.sharding.max_live - self.counted, self.ahead)
        ahead: set[int] = set()
        while self.queue and sum(self.numel[p] for p in ahead) < most:
            p, step = self.queue.popleft()
            self.fetched_for[p] = max(self.fetched_for[p], step)
            if p not in self.available:
                ahead.add(p)
        self._gather(ahead)

    def _gather(self, parameters: set[int]) -> None:
        self.gathered += sorted(parameters)
        self.calls += len({self.trace.parameters[p].item for p in parameters})  # one for each type
        self.available |= parameters
        self.counted += sum(self.numel[p] for p in parameters)
        self.live += sum(self.bytes[p] for p in parameters - self.persistent)
        self.peak = max(self.peak, self.live)
        self.largest = max(self.largest, sum(self.bytes[p] for p in parameters))

    def _release(self, event: Event) -> None:
        module, own = event.module, set(self._held_by(event.module))
        release = self._to_release(module)
        if not event.forward:
            again = self.recomputed.pop(module, set())
            release, own = release | (again - self.persistent), own | again
            self.backward.pop(module, None)
        for p in own:
            self.holders[p].discard(module)
        self._drop(release & own)

    def _drop(self, parameters: set[int]) -> None:
        for p in parameters & self.available:
            if not self.holders[p]:
                self.available.discard(p)
                self.counted -= self.numel[p]
                self.live -= self.bytes[p] if p not in self.persistent else 0

    def _to_release(self, module: int) -> set[int]:
        """Decided once for each place in the order, as DeepSpeed does."""
        if self.recording:
            return set(self._held_by(module))
        key = (module, self.step)
        if key not in self.decided:
            release = {p for p in self._held_by(module) if p not in self.persistent}
            release -= {p for p in release if self.fetched_for[p] > self.step}
            # DeepSpeed looks inside all later modules if this one is gathered as one, and into none if it is not
            table = self.trace.inside if module in self.trace.whole else self.trace.own
            passed = 0
            for later in self.fetches[self.step :]:
                if passed >= self.sharding.max_reuse:
                    break
                release -= set(table[later])
                passed += sum(self.numel[p] for p in table[later])
            self.decided[key] = release
        return self.decided[key]
