"""Which rank computes which sample of a global batch: pure arithmetic on lengths that every rank knows from the index.

All ranks run micro-step k at the same time, and a micro-batch costs what its longest sample costs. So the samples are
sorted by length and cut into as many groups as there are micro-steps, and each group is dealt to the ranks so that
pictures and long texts are spread evenly. Which samples form the batch is not touched, and since the loss is a sum over
all supervised tokens of the global batch, neither is the step's result.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Weight(NamedTuple):
    """What a sample costs, as far as the index tells."""

    length: int
    """Length of what stands in the sequence, in any unit."""
    image: bool
    """Whether the vision tower has to run for it."""


def deal(weights: Sequence[Weight], ranks: int, micro_batch: int) -> list[list[list[int]]]:
    """-> [rank][micro-step] -> positions in `weights`, each exactly once. With fewer samples than
    ranks x micro_batch x steps (the end of an evaluation) the last micro-step's shares are smaller or empty; every rank
    has the same number of micro-steps."""
    group = ranks * micro_batch
    longest_first = sorted(range(len(weights)), key=lambda i: (-weights[i].length, i))
    dealt: list[list[list[int]]] = [[] for _ in range(ranks)]
    for start in range(0, len(weights), group):
        members = longest_first[start : start + group]
        members.sort(key=lambda i: (not weights[i].image, -weights[i].length, i))
        for rank, share in enumerate(_snake(members, ranks)):
            dealt[rank].append(share)
    return dealt


def _snake(members: list[int], ranks: int) -> list[list[int]]:
    """Dealt to ranks 0, 1, 2, 2, 1, 0, 0, 1, ... so that no rank always gets the longer one."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for turn, member in enumerate(members):
        lap, seat = divmod(turn, ranks)
        shares[seat if lap % 2 == 0 else ranks - 1 - seat].append(member)
    return shares
