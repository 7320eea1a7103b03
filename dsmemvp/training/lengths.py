"""The token counts by which a run balances its work: counted by the first rank, the same on all."""

from pathlib import Path

from dsmemvp.data.collator import Collator
from dsmemvp.data.datasets import TrainingData
from dsmemvp.data.lengths import Lengths, count_lengths, countable, lengths_path
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.errors import UserError


def training_lengths(ranks: Ranks, run: Path, data: TrainingData, collator: Collator) -> Lengths | None:
    """None if the data is too large to be counted, or remote: then lengths are estimated. Raises UserError or OSError,
    the same on all ranks."""
    if not countable(data.manifests):
        return None
    ranks.together(lambda: count_lengths(run, data.manifests, collator) if ranks.first else None)
    lengths = Lengths(lengths_path(run, data.manifests, collator))
    samples = sum(manifest.samples for manifest in data.manifests)
    found = ranks.gather([ranks.together(lambda: lengths.check(samples))])
    if len(set(found)) > 1:  # they would not agree on who computes what
        raise UserError(f"{lengths.path} is not the same file on all nodes; `output` must lie on a shared file system")
    return lengths
