"""Scores of contenders over several seeds and the same test samples, and how sure their differences are.

A contender's points are a matrix [S, N]: S seeds of training, N test samples, each 0 to 1. Two things change if a study
is done again: the test samples that were drawn, and the seed. The variance of a mean over both is estimated as

    (variance over samples of the mean over seeds, less what seeds add to it) / N + (variance over seeds of the mean
    over samples) / S

(two crossed random factors; Searle, Casella and McCulloch, "Variance Components", 1992, chapter 4). A difference has
the first term once, of the differences, and the second one for each of the two contenders that has several seeds: one
may vary much more than the other.

Half of an interval is the root of the summed squares of two: Student's t with the samples' degrees of freedom times the
root of the first term, and t with those of Welch's test of the seeds' means (Satterthwaite, 1946) times the root of the
rest (Howe, "Approximate confidence limits on the mean of X + Y", 1974). p is the level whose interval just reaches 0.
One t for the whole would lend few seeds the many degrees of freedom of the samples, so that seeds that look alike by
chance make a difference sure, or the other way round. With one seed each all speaks of the test samples alone.

The percentile bootstrap over samples and seeds stands beside it; seeds are spread around their mean by
sqrt(S / (S - 1)), without which S of them vary too little (Davison and Hinkley, "Bootstrap Methods and their
Application", 1997, section 3.8). It is the wider one: what a seed does to single samples counts up to three times in
it (Owen, "The pigeonhole bootstrap", 2007).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
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


class Part(NamedTuple):
    """Of the variance of a mean."""

    variance: np.ndarray
    """[...], of as many means."""
    freedom: int


def estimates(points: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    """Of every contender's points, [S, N]; seeds of one that has a single one are no source of chance."""
    return {name: _estimate(own, parts_of(own), lowest=0.0) for name, own in _in_percent(points).items()}


def differences(points: Mapping[str, np.ndarray]) -> list[Difference]:
    """Of every pair of contenders. Samples of all matrices, [S, N], are the same ones in the same order; a contender
    that was run once stands beside each seed of the other."""
    percent, found = _in_percent(points), []
    for first, second in combinations(points, 2):
        a, b = percent[first], percent[second]
        own = _estimate(np.subtract(*np.broadcast_arrays(a, b)), parts_of_difference(a, b))
        found.append((first, second, own, _cohens_h(points[first].mean(), points[second].mean())))
    corrected = holm([row[2].p for row in found])
    return [Difference(a, b, own, p, h) for (a, b, own, h), p in zip(found, corrected, strict=True)]


def same_runs(first: str, second: str, points: np.ndarray, others: np.ndarray) -> Difference:
    """Of the same runs, [S, N], asked in two ways: what a seed does to both is no chance of their difference."""
    apart = 100.0 * (np.asarray(points, dtype=np.float64) - others)
    own = _estimate(apart, parts_of(apart))
    return Difference(first, second, own, own.p, _cohens_h(np.mean(points), np.mean(others)))


def _in_percent(points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: 100.0 * np.asarray(values, dtype=np.float64) for name, values in points.items()}


def parts_of(points: np.ndarray) -> list[Part]:
    """Of the mean of points [..., S, N]."""
    return _parts(points.mean(-2), [points])


def parts_of_difference(points: np.ndarray, others: np.ndarray) -> list[Part]:
    """Of the difference of two means, of [..., S, N] and [..., R, N]."""
    return _parts(points.mean(-2) - others.mean(-2), [points, others])


def _parts(mean_N: np.ndarray, seeded: Sequence[np.ndarray]) -> list[Part]:
    """`mean_N`, [..., N], is over seeds; `seeded`, [..., S, N], what it is the mean or the difference of."""
    samples, parts = mean_N.shape[-1], []
    of_samples = mean_N.var(-1, ddof=min(1, samples - 1))
    for own in seeded:
        seeds = own.shape[-2]
        if seeds > 1:
            parts.append(Part(own.mean(-1).var(-1, ddof=1) / seeds, seeds - 1))
            # single answers of one seed: they are part of what a seed's mean varies by
            rest = own - own.mean(-2, keepdims=True)
            of_samples = of_samples - rest.var(-1, ddof=min(1, samples - 1)).mean(-1) / (seeds - 1)
    return [Part(np.maximum(of_samples, 0.0) / samples, max(samples - 1, 1)), *parts]


def p_values(values: np.ndarray, parts: Sequence[Part]) -> np.ndarray:
    """Two-sided, of the means being 0, [...]; not defined for a mean whose variances are all 0."""
    low, high = np.full(np.shape(values), -300.0), np.zeros(np.shape(values))  # powers of ten
    for _ in range(64):
        middle = (low + high) / 2
        beyond = reach(10**middle, parts) > np.abs(values)
        low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
    return 10**high


def reach(level: np.ndarray | float, parts: Sequence[Part]) -> np.ndarray:
    """Half of the interval that leaves out `level`, [...]."""
    samples, *seeds = parts
    square = stats.t.isf(np.asarray(level) / 2, samples.freedom) ** 2 * samples.variance
    if seeds:
        total = np.asarray(sum(part.variance for part in seeds))
        square = square + stats.t.isf(np.asarray(level) / 2, _welch(seeds)) ** 2 * total
    return np.sqrt(square)


def _welch(seeds: Sequence[Part]) -> np.ndarray:
    """Degrees of freedom of a sum of variances, [...]."""
    total = np.asarray(sum(part.variance for part in seeds))
    squares = np.asarray(sum(part.variance**2 / part.freedom for part in seeds))
    equal = np.full_like(total, sum(part.freedom for part in seeds))  # no seed differs from another
    return np.divide(total**2, squares, out=equal, where=squares > 0)


def _estimate(points_SN: np.ndarray, parts: Sequence[Part], lowest: float = -100.0) -> Estimate:
    """In per cent; the interval ends at what is possible, `lowest` and 100."""
    value, half = float(points_SN.mean()), float(reach(1 - LEVEL, parts))
    # a single answer says nothing of how much answers vary
    p = float(p_values(np.array(value), parts)) if half > 0 else float(value == 0 or points_SN.size == 1)
    low, high = np.percentile(_resampled(points_SN), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    seeds = tuple(map(float, points_SN.mean(1)))
    return Estimate(value, max(value - half, lowest), min(value + half, 100.0), p, seeds, (float(low), float(high)))


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
    seeds, samples = points_SN.shape
    drawn = np.random.default_rng((SEED, seeds)).integers(seeds, size=(RESAMPLES, seeds))
    of_seeds = _drawn(samples) @ points_SN.T / samples  # [RESAMPLES, S]
    means = of_seeds.mean(1, keepdims=True)
    spread = np.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0
    return (means + spread * (np.take_along_axis(of_seeds, drawn, axis=1) - means)).mean(1)


@lru_cache(maxsize=1)
def _drawn(samples: int) -> np.ndarray:
    """[RESAMPLES, N], how often each sample is in a resample: the same ones for all that a study estimates, since they
    take seconds to draw. 8 bytes each, so that BLAS multiplies them."""
    generator = np.random.default_rng(SEED)
    return generator.multinomial(samples, np.full(samples, 1 / samples), size=RESAMPLES).astype(np.float64)
