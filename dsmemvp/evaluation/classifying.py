"""A batch of samples -> the classes that the model puts them into, in step with the other ranks."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dsmemvp.data.batch import Batch, Labels, MicroBatch
from dsmemvp.data.sample import label_text
from dsmemvp.evaluation.answering import Answer
from dsmemvp.generation.generate import highest_log_probability

THRESHOLD = 0.5
"""Probability from which a sample has a class, if it may have several."""


@dataclass(frozen=True)
class Classifying:
    forward: Callable[[Batch], tuple[Any, Any]]
    labels: Labels

    def __call__(self, batch: MicroBatch) -> list[Answer]:
        """For each of `batch.samples`, the numbers of its classes (`label_text`)."""
        logits_SC, _ = self.forward(batch.batch)
        rows = logits_SC[: len(batch.samples)]
        if not self.labels.several:
            best = zip(rows.argmax(-1).tolist(), highest_log_probability(rows).tolist(), strict=True)
            return [Answer(str(number), log_probability=log) for number, log in best]
        return [_several(row) for row in rows.sigmoid().tolist()]


def _several(probabilities: list[float]) -> Answer:
    """Of outputs that are not finite, a probability that is NaN: it is refused by who writes them down."""
    classes = label_text(c for c, probability in enumerate(probabilities) if probability >= THRESHOLD)
    return Answer(classes, log_probability=math.nan if any(map(math.isnan, probabilities)) else None)
