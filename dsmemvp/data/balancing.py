"""Decide which rank computes which sample of a global batch, and in which micro-step: pure arithmetic on
costs that every rank knows.

All ranks run micro-step k at the same time and wait for the slowest, so micro-batches of one micro-step should cost the
same; how many samples they hold does not matter. Samples are put into micro-batches one by one, the most expensive
first, each into the cheapest so far (longest processing time first, Graham 1969). Which samples form the batch is not
touched, and since the loss is a sum over all supervised tokens of the global batch, neither is the step's result.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dsmemvp.data.batch import Batch


class Weight(NamedTuple):
    """What is known of a sample before it is read."""

    tokens: int
    """In its sequence, reserved places included."""
    image: bool
    """Whether the vision tower has to run for it."""


@dataclass(frozen=True)
class CostModel:
    """What a sample costs, in the time that a token takes outside of attention. backbones/costs.py works it out."""

    per_token: float = 1.0
    per_token_squared: float = 0.0
    """Attention: every token looks at those before it."""
    per_image: float = 0.0

    def __call__(self, weight: Weight) -> float:
        attention = self.per_token_squared * weight.tokens**2
        return self.per_token * weight.tokens + attention + self.per_image * weight.image


def batch_cost(batch: Batch, costs: CostModel) -> float:
    """What a rank computes in a micro-step. Without any image the vision tower runs on a dummy row."""
    images = max(1, batch.images.shape[0])
    return sum(costs(Weight(length, False)) for length in batch.lengths) + costs.per_image * images


def balance(
    weights: Sequence[Weight], costs: CostModel, ranks: int, micro_batch: int, micro_tokens: int = 0
) -> list[list[list[int]]]:
    """-> [rank][micro-step] -> positions in `weights`, each exactly once. All ranks have the same number of
    micro-steps: so many that micro-batches hold `micro_batch` samples on average or, if `micro_tokens` is given, the
    fewest with which each holds at most so many tokens (a longer sample stands alone). A micro-batch is empty only if
    there are fewer samples than micro-batches."""
    prices = [costs(weight) for weight in weights]
    if micro_tokens:
        steps = max(1, -(-fewest_parts(weights, micro_tokens) // ranks))
        while (parts := _packed(weights, prices, steps * ranks, micro_tokens)) is None:
            steps += 1
    else:
        steps = -(-len(weights) // (ranks * micro_batch))
        packed = _packed(weights, prices, steps * ranks, sum(weight.tokens for weight in weights))
        assert packed is not None
        parts = packed
    return _spread(parts, prices, ranks) if weights else [[] for _ in range(ranks)]


def fewest_parts(weights: Sequence[Weight], most: int) -> int:
    """No fewer micro-batches than these hold `most` tokens each: by the sum, and since of samples above a k-th of it
    each holds fewer than k. From the sum alone, batches of samples just above a half would be tried for minutes."""
    tokens = [min(weight.tokens, most) for weight in weights]
    by_size = (-(-sum(n * k > most for n in tokens) // (k - 1)) for k in range(2, 10))
    return max(-(-sum(tokens) // most), *by_size)


def _packed(weights: Sequence[Weight], prices: Sequence[float], number: int, most: int) -> list[list[int]] | None:
    """`number` micro-batches of at most `most` tokens; None if a sample finds no place."""
    parts: list[list[int]] = [[] for _ in range(number)]
    tokens = [0] * number
    cheapest = [(0.0, part) for part in range(number)]
    for i in sorted(range(len(weights)), key=lambda i: (-prices[i], i)):
        full = []
        while cheapest:
            price, part = heapq.heappop(cheapest)
            if not parts[part] or tokens[part] + weights[i].tokens <= most:
                break
            full.append((price, part))
        else:
            return None
        parts[part].append(i)
        tokens[part] += weights[i].tokens
        for known in (*full, (price + prices[i], part)):
            heapq.heappush(cheapest, known)
    return parts


def _spread(parts: list[list[int]], prices: Sequence[float], ranks: int) -> list[list[list[int]]]:
    """Micro-batches of like cost run in the same micro-step; in each, the rank that has had the least gets the most."""
    priced = sorted(((sum(prices[i] for i in part), part) for part in parts), key=lambda row: (-row[0], row[1]))
    shares: list[list[list[int]]] = [[] for _ in range(ranks)]
    before = [0.0] * ranks
    for start in range(0, len(priced), ranks):
        order = sorted(range(ranks), key=lambda rank: (before[rank], rank))
        for rank, (price, part) in zip(order, priced[start : start + ranks], strict=True):
            shares[rank].append(part)
            before[rank] += price
    return shares


def imbalance(costs: Sequence[Sequence[float]]) -> float:
    """How much longer the ranks are busy together than they would be if every micro-step cost them the same; `costs`
    is [rank][micro-step]. 1 is even."""
    columns = list(zip(*costs, strict=True))
    return sum(max(column) for column in columns) * len(costs) / sum(sum(column) for column in columns)
