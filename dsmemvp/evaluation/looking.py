"""What TensorBoard shows of the memory beside the scores: a few fixed samples, looked into (inspection/board.py)."""

import bisect
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dsmemvp.data.collator import Collator
from dsmemvp.data.manifest import Manifest
from dsmemvp.data.order import Place
from dsmemvp.data.sample import BadSample, Sample, SampleError, read_sample
from dsmemvp.data.stream import Reader
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.inspection.board import BoardReport, board_report
from dsmemvp.log import log
from dsmemvp.model import VisualLanguageModel
from dsmemvp.training.event_file import EventFile

SHOWN = 4
"""Samples with a picture, the same ones at every step."""
CANDIDATES, WALK = 32, 50
"""Places evenly spaced over the data, near which a sample with a picture is looked for; and how far."""


def show_memory(
    run: Path,
    step: int,
    ranks: Ranks,
    data: Manifest,
    collator: Collator,
    tokenizer: Tokenizer,
    model: VisualLanguageModel,
    forward: Callable[..., Any],
) -> None:
    """Called on all ranks; two forwards. What cannot be written is said and not shown. Raises UserError or OSError for
    data that cannot be read."""
    samples = ranks.together(lambda: samples_to_show(data, collator, tokenizer))
    report = board_report(model, forward, collator, tokenizer, samples)
    if ranks.first:
        _write(report, run, step)


def samples_to_show(data: Manifest, collator: Collator, tokenizer: Tokenizer) -> list[Sample]:
    """Up to SHOWN samples with pictures, as different as a few candidates are: each has as much as possible (task,
    subject, right answer) that those before it have not. Left out are those that cannot be used: the evaluation has
    told of them, or ended at them. Raises OSError, or UserError for an index that cannot be read."""
    candidates = list(_candidates(data))
    found: list[Sample] = []
    seen: set[tuple[str, str]] = set()
    while candidates and len(found) < SHOWN:
        best = max(candidates, key=lambda sample: len(_kinds(sample) - seen))  # the first of equals
        candidates.remove(best)
        try:
            collator.item(tokenizer, best)
        except SampleError:
            continue
        found.append(best)
        seen |= _kinds(best)
    return sorted(found, key=lambda sample: sample.index)


def _candidates(data: Manifest) -> Iterator[Sample]:
    reader = Reader([data], indexes=1)
    counts = data.counts
    ends = list(itertools.accumulate(counts))
    last = Place(0, 0, -1)
    for number in sorted({n * data.samples // CANDIDATES for n in range(CANDIDATES)}):
        shard = bisect.bisect_right(ends, number)
        start = number - ends[shard] + counts[shard]
        places = (Place(0, shard, sample) for sample in range(start, min(start + WALK, counts[shard])))
        place = next((place for place in places if reader.weight(place)[1]), None)  # the index knows of pictures
        if place is None or place <= last:
            continue
        last = place
        entry = reader.read([place])[place]
        try:
            if not isinstance(entry, BadSample):
                yield read_sample(entry)
        except SampleError:
            continue


def _kinds(sample: Sample) -> set[tuple[str, str]]:
    answer = sample.choices[int(sample.answer)] if sample.choices else str(sample.answer)
    named = {"task": sample.scores.get("task"), "subject": sample.scores.get("subject"), "answer": answer.lower()}
    return {(name, str(value)) for name, value in named.items()}


def _write(report: BoardReport, run: Path, step: int) -> None:
    try:
        with EventFile(run) as board:
            report.write(board, step)
    except OSError as error:
        log.warning(f"TensorBoard's pictures of the memory cannot be written: {error}")
