"""Count the samples that were left out, record their file and key, and end the run if there are too many."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from dsmemvp.counting import counted
from dsmemvp.data.batch import MicroBatch, Skip
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.errors import UserError
from dsmemvp.training.monitor import Monitor

FILE = "skipped"
LISTED = 20
"""How many of them are listed in the log at the end; the file has all."""


class Skips:
    def __init__(self, ranks: Ranks, monitor: Monitor, global_batch: int, most_in_a_row: int):
        self._ranks, self._monitor = ranks, monitor
        self._global_batch, self._most = global_batch, most_in_a_row
        self._in_a_row = 0
        self.total = monitor.count(FILE)
        """Skips since the beginning of the run, known to the first rank."""

    def begin_stage(self, global_batch: int, most_in_a_row: int) -> None:
        """Other data, in which samples follow one another anew."""
        self._global_batch, self._most, self._in_a_row = global_batch, most_in_a_row, 0

    def none(self) -> None:
        """A step in which no rank left out anything."""
        self._in_a_row = 0

    def note(self, step: int, batches: Sequence[MicroBatch]) -> None:
        """A step in which some rank did; called by all. Raises UserError, on all ranks, if too many samples came
        one after another in the order."""
        own = [json.dumps(skip) for batch in batches for skip in batch.skipped]
        skips = {skip.position: skip for skip in (Skip(*json.loads(text)) for text in self._ranks.gather(own))}
        for position in range(self._global_batch):
            if position not in skips:
                self._in_a_row = 0
                continue
            skip = skips[position]
            self._in_a_row += 1
            self.total += 1
            self._monitor.write(FILE, {"step": step, "position": position, "sample": skip.message})
            if self.total == 1 or self.total % 1000 == 0:
                self._monitor.say(f"step {step}: left out, the {self.total}. so far: {skip.message}")
            if self._in_a_row >= self._most:
                raise UserError(
                    f"step {step}: {counted(self._in_a_row, 'sample')} one after another could not be used, as many as"
                    f" data.most_bad_in_a_row allows; the last: {skip.message}"
                )

    def report(self) -> None:
        """What was left out over the whole run, in the log."""
        messages = (row.get("sample") for row in self._monitor.written(FILE))
        often, times = _first_of(message for message in messages if isinstance(message, str))
        if not often:
            return
        self._monitor.say(f"{counted(times, 'time')} a sample was left out (all in {FILE}.jsonl):")
        for message, own in sorted(often.items()):
            self._monitor.say(f"  {message}" + (f" ({own} times)" if own > 1 else ""))
        if times > often.total():
            self._monitor.say(f"  and {times - often.total()} more")


def _first_of(messages: Iterable[str]) -> tuple[Counter[str], int]:
    """The first LISTED messages by name and how often each came, and how many came in all. A message that has had to
    make room never comes in again, so the counts are exact, and no more than these are ever held."""
    often, times = Counter[str](), 0
    for message in messages:
        times += 1
        if message in often or len(often) < LISTED or message < max(often):
            often[message] += 1
            if len(often) > LISTED:
                del often[max(often)]
    return often, times
