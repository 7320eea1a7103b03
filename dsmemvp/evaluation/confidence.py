"""Scores with 95 % confidence intervals from the percentile bootstrap over samples (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, chapter 13).

Every interval draws RESAMPLES times as many samples, with replacement, as the score was counted on, and says between
which values the middle 95 % of the resampled scores lie. It speaks of the choice of test samples alone, not of another
seed of training. A resample needs only how often each different row of sums was drawn, and those numbers are
multinomial: 200,000 answers that are right or wrong cost as much as two rows. The rows are sorted first, so the
interval does not depend on the samples' order, and the seed is fixed, so the same predictions give the same interval.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dsmemvp.errors import UserError

RESAMPLES = 2000
LEVEL = 95.0
"""Per cent."""
SEED = 20
DRAWS_AT_ONCE = 10_000_000
"""Bounds the memory: 80 MB of counts."""


@dataclass(frozen=True)
class Score:
    value: float
    low: float
    high: float
    """Ends of the confidence interval, in the unit of the value."""
    samples: int
    """How many it was counted on."""

    @property
    def margin(self) -> float:
        """Half of the interval, what is written behind +-. The interval need not lie evenly around the value."""
        return (self.high - self.low) / 2


def mean_score(values: np.ndarray, scale: float = 100.0) -> Score:
    """The mean of one value per sample, [N], times `scale`."""
    return score_of_sums(np.asarray(values, dtype=np.float64)[:, None], lambda sums, n: scale * sums[..., 0] / n)


def score_of_sums(
    rows: np.ndarray, formula: Callable[[np.ndarray, int], np.ndarray], times: np.ndarray | None = None
) -> Score:
    """A score that follows from sums over the samples. `rows`: what each sample adds, [N, S]; `formula(sums, N)`: the
    scores [...] of sums [..., S]. With `times` [R] rows are [R, S], all different and in an order that is not that of
    the samples, and so many samples add each. Raises UserError if there is no sample."""
    if not len(rows):
        raise UserError("no sample to count a score on")
    different, counts = np.asarray(rows, dtype=np.float64), times
    if counts is None:
        different, counts = np.unique(different, axis=0, return_counts=True)
    samples = int(counts.sum())
    value = float(formula(counts @ different, samples))
    resampled = formula(_resampled_sums(different, counts), samples)
    low, high = np.percentile(resampled, [50 - LEVEL / 2, 50 + LEVEL / 2])
    return Score(value, float(low), float(high), samples)


def _resampled_sums(different: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[RESAMPLES, S]."""
    generator = np.random.default_rng(SEED)
    samples, shares = int(counts.sum()), counts / counts.sum()
    at_once = max(1, DRAWS_AT_ONCE // len(counts))
    sizes = [min(at_once, RESAMPLES - start) for start in range(0, RESAMPLES, at_once)]
    return np.concatenate([generator.multinomial(samples, shares, size=size) @ different for size in sizes])
