"""Whether answers are right as often as the model is sure of them. Its confidence is the probability of the text that
it writes, or of the class; for choices that are answered by likelihood, that of the chosen letter among those of the
question's choices.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import softmax

BINS = 15
"""Of equal width, as in Guo et al., "On calibration of modern neural networks", 2017."""


@dataclass(frozen=True)
class Calibration:
    """In per cent."""

    error: float
    """Expected calibration error: |accuracy - confidence| of each bin, weighted by its answers; the mean over seeds."""
    seeds: tuple[float, ...]
    """Of each seed alone."""
    bins: tuple[tuple[float, float, int], ...]
    """(mean confidence, accuracy, answers) of the bins that have any, over all seeds."""


def calibration(confidence_SN: np.ndarray, right_SN: np.ndarray) -> Calibration:
    """Confidence, 0 to 1, and whether the answer is right, of S seeds and N questions."""
    seeds = tuple(_error(_bins(c, r)) for c, r in zip(confidence_SN, right_SN, strict=True))
    return Calibration(float(np.mean(seeds)), seeds, tuple(_bins(confidence_SN.ravel(), right_SN.ravel())))


def _bins(confidence_N: np.ndarray, right_N: np.ndarray) -> list[tuple[float, float, int]]:
    place_N = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
    members = [place_N == place for place in range(BINS)]
    return [
        (100 * float(confidence_N[m].mean()), 100 * float(right_N[m].mean()), int(m.sum())) for m in members if m.any()
    ]


def _error(bins: Sequence[tuple[float, float, int]]) -> float:
    return sum(abs(right - sure) * count for sure, right, count in bins) / sum(count for _, _, count in bins)


def confidences(path: Path, evaluation: str) -> dict[int, float]:
    """Of the samples of an evaluation in its predictions.jsonl by their running number; those without a probability,
    as sets of classes and answers of earlier versions, are not in it."""
    found = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row.get("evaluation", "") != evaluation:
                continue
            if row.get("log_likelihoods"):
                found[row["index"]] = float(softmax(row["log_likelihoods"]).max())
            elif "log_probability" in row:
                found[row["index"]] = math.exp(row["log_probability"])
    return found
