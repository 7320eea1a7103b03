"""Samples of a recipe's data that would end a run: too long for data.max_length, or of a class that is not there."""

import heapq
from collections.abc import Iterator
from typing import NamedTuple

from dsmemvp.data.collator import Collator
from dsmemvp.data.manifest import Manifest
from dsmemvp.data.order import Place
from dsmemvp.data.sample import BadSample, SampleError, read_sample
from dsmemvp.data.stream import Reader
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.data_tools.lengths import least_length, too_long

TRIED = 300
"""Samples of a data set that are tokenised: those with the longest texts."""
WEIGHED = 1_000_000
"""Samples whose lengths are looked up in the indexes, of shards evenly spaced over the data."""


class Problem(NamedTuple):
    """A sample that cannot be used."""

    message: str
    needed: int = 0
    """The data.max_length with which it can; 0 if it is not too long."""


def longest_texts(manifest: Manifest, collator: Collator) -> tuple[str, list[Problem]]:
    """What was looked at, and what is wrong with it. Pictures are not decoded, remote shards are not fetched. Raises
    OSError or ValueError."""
    if manifest.remote:
        return "texts of remote shards are not looked at (dsmemvp data check reads them all)", []
    reader, tokenizer = Reader([manifest], indexes=1), Tokenizer(collator.tokenizer_path)
    # one without any text cannot be used at all, and its index says so by the length 0
    longest = heapq.nlargest(TRIED, _places(manifest), key=lambda place: reader.weight(place)[0] or float("inf"))
    wrong = [problem for place in sorted(longest) if (problem := _problem(reader, place, collator, tokenizer))]
    return f"the {len(longest)} longest texts of {manifest.samples} tokenised", wrong


def _places(manifest: Manifest) -> Iterator[Place]:
    counts = manifest.counts
    every = -(-manifest.samples // WEIGHED)
    for shard in range(0, len(counts), min(every, len(counts))):
        yield from (Place(0, shard, sample) for sample in range(counts[shard]))


def _problem(reader: Reader, place: Place, collator: Collator, tokenizer: Tokenizer) -> Problem | None:
    entry = reader.read([place])[place]
    try:
        if isinstance(entry, BadSample):
            raise entry.error
        sample = read_sample(entry)
        collator.check_labels(sample)
        least = least_length(collator, tokenizer, sample)
    except SampleError as error:
        return Problem(str(error))
    if least > collator.max_length and too_long(collator, tokenizer, sample):
        limit = f"data.max_length = {collator.max_length}"
        return Problem(f"{sample.where}: is longer than {limit}; it needs data.max_length={least}", least)
    return None
