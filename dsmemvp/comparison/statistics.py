"""Scores of contenders over several seeds and the same test samples, and how sure their differences are.

A contender's points are a matrix [S, N]: S seeds of training, N test samples, each 0 to 1. Two things change if a study
is done again: the test samples that were drawn, and the seed. The variance of a mean over both is estimated as

    (variance over samples of the mean over seeds, less what seeds add to it) / N + (variance over seeds of the mean
    over samples) / S

(two crossed random factors; Searle, Casella and McCulloch, "Variance Components", 1992, chapter 4). The second term is
pooled over the contenders, as in an analysis of variance: three seeds alone say next to nothing about it. Intervals and
p-values come from Student's t with Satterthwaite's degrees of freedom (1946). With one seed each they speak of the test
samples alone.

The percentile bootstrap over samples and seeds stands beside it; seeds are spread around their mean by
sqrt(S / (S - 1)), without which S of them vary too little (Davison and Hinkley, "Bootstrap Methods and their
Application", 1997, section 3.8).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 2000
LEVEL = 0.95
SEED = 17


@dataclass(frozen=True)
class Estimate:
    """In per cent, or points of per cent for a difference."""

    value: float
    low: float
    high: float
    """Ends of the 95 % interval."""
    p: float
    """Two-sided, of the value being 0."""
    seeds: tuple[float, ...]
    """The value of each seed alone."""
    bootstrap: tuple[float, float]
    """Ends of the 95 % interval by the bootstrap."""


@dataclass(frozen=True)
class Difference:
    """Of the first contender less the second, on the same samples."""

    first: str
    second: str
    estimate: Estimate
    holm: float
    """p after Holm's correction over all pairs."""
    effect: float
    """Cohen's h of the two scores (Cohen, "Statistical Power Analysis", 1988, chapter 6): 0.2 is small, 0.5 medium."""

    @property
    def found(self) -> bool:
        """Whether there is a difference at the 5 % level after the correction."""
        return self.holm < 1 - LEVEL


class Seeds(NamedTuple):
    """How much a contender's score varies by its seed."""

    variance: float
    freedom: int
    """0: not known, all contenders have one seed."""


def estimates(points: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    """Of every contender's points, [S, N]; those with one seed are taken to have none."""
    pooled = _pooled(points)
    return {name: _estimate(own, _of(pooled, own)) for name, own in points.items()}


def differences(points: Mapping[str, np.ndarray]) -> list[Difference]:
    """Of every pair of contenders. Samples of all matrices, [S, N], are the same ones in the same order, and so are
    seeds; a contender that was run once stands beside each seed of the other."""
    pooled, found = _pooled(points), []
    for first, second in combinations(points, 2):
        a, b = np.broadcast_arrays(points[first], points[second])
        seeds = Seeds(sum(_of(pooled, points[name]).variance for name in (first, second)), pooled.freedom)
        found.append((first, second, _estimate(a - b, seeds), _cohens_h(a.mean(), b.mean())))
    corrected = holm([row[2].p for row in found])
    return [Difference(a, b, own, p, h) for (a, b, own, h), p in zip(found, corrected, strict=True)]


def _pooled(points: Mapping[str, np.ndarray]) -> Seeds:
    own = [100.0 * np.asarray(values, dtype=np.float64) for values in points.values() if len(values) > 1]
    freedom = sum(len(values) - 1 for values in own)
    squares = sum(float(((values.mean(1) - values.mean()) ** 2).sum()) for values in own)
    return Seeds(squares / freedom if freedom else 0.0, freedom)


def _of(pooled: Seeds, points_SN: np.ndarray) -> Seeds:
    return pooled if len(points_SN) > 1 else Seeds(0.0, 0)


def _estimate(points_SN: np.ndarray, by_seed: Seeds) -> Estimate:
    points = 100.0 * np.asarray(points_SN, dtype=np.float64)
    value = float(points.mean())
    error, freedom = _standard_error(points, by_seed)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    # a single answer says nothing of how much answers vary
    p = float(2 * stats.t.sf(abs(value) / error, freedom)) if error > 0 else float(value == 0 or points.size == 1)
    low, high = np.percentile(_resampled(points), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    seeds = tuple(map(float, points.mean(1)))
    return Estimate(value, value - reach, value + reach, p, seeds, (float(low), float(high)))


def _standard_error(points_SN: np.ndarray, by_seed: Seeds) -> tuple[float, float]:
    """Of the mean over seeds and samples, and its degrees of freedom."""
    seeds, samples = points_SN.shape
    of_samples, rest = points_SN.mean(0).var(ddof=1) if samples > 1 else 0.0, max(samples - 1, 1)
    if by_seed.freedom:
        # single answers of one seed: they are part of what a seed's mean varies by
        of_answers = (points_SN - points_SN.mean(0)).var(axis=1, ddof=min(1, samples - 1)).mean() / max(seeds - 1, 1)
        of_samples = max(of_samples - of_answers, 0.0)
    parts = of_samples / samples, by_seed.variance / seeds
    variance = sum(parts)
    if variance == 0:
        return 0.0, rest
    freedom = variance**2 / (parts[0] ** 2 / rest + parts[1] ** 2 / max(by_seed.freedom, 1))
    return float(np.sqrt(variance)), float(freedom)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm, "A simple sequentially rejective multiple test procedure", 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _cohens_h(a: float, b: float) -> float:
    return float(2 * np.arcsin(np.sqrt(a)) - 2 * np.arcsin(np.sqrt(b)))


def _resampled(points_SN: np.ndarray) -> np.ndarray:
    """[RESAMPLES] means."""
    generator = np.random.default_rng(SEED)
    seeds, samples = points_SN.shape
    counts = generator.multinomial(samples, np.full(samples, 1 / samples), size=RESAMPLES)
    drawn = generator.integers(seeds, size=(RESAMPLES, seeds))
    of_seeds = counts @ points_SN.T / samples  # [RESAMPLES, S]
    means = of_seeds.mean(1, keepdims=True)
    spread = np.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0
    return (means + spread * (np.take_along_axis(of_seeds, drawn, axis=1) - means)).mean(1)
