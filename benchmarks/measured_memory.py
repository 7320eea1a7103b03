"""Bytes that torch's CPU allocator holds while a function runs, by its own records."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

from torch.profiler import ProfilerActivity, profile


def held_and_peak(function: Callable[[], object]) -> tuple[int, int]:
    """(what the call leaves allocated while its result lives, most at any moment), beyond what was there before."""
    profiled = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    profiled.start()
    result = function()  # noqa: F841, what it refers to is to be alive when the records end
    profiled.stop()
    profiler: Any = profiled.profiler
    records = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    sums = list(accumulate(event.nbytes() for event in sorted(records, key=lambda event: event.start_ns())))
    return sums[-1], max(sums)
