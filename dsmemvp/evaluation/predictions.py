"""Predictions for all samples of a data set, the work spread over all ranks in whole batches.

A batch is the same samples for any number of ranks, so a sample is computed in the same shapes, and predictions do not
depend on that number, not even by rounding. Batches that a run before has answered are not computed again.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial as bound
from typing import Any

import numpy as np
import torch

from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import MicroBatch
from dsmemvp.data.collator import Collator
from dsmemvp.data.loader import Share, evaluation_batches, evaluation_steps
from dsmemvp.data.manifest import Manifest
from dsmemvp.data.sample import Sample
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.distributed.stopping import Stopped
from dsmemvp.errors import UserError
from dsmemvp.evaluation.answering import Answer
from dsmemvp.evaluation.partial import Partial
from dsmemvp.evaluation.scores import Prediction, predict
from dsmemvp.generation.generate import NOT_FINITE
from dsmemvp.log import log
from dsmemvp.progress import Progress


@dataclass(frozen=True)
class Predicted:
    """The first rank's; the others' is empty."""

    rows: list[dict[str, Any]]
    """In the samples' order: all fields of Prediction ("cut" if the text was cut), question and choices, and
    "log_likelihoods" or "log_probability" as `Answer` has them."""
    skipped: list[str]
    """Messages of the samples that were left out."""
    cut: int
    """How many contexts were cut."""

    @property
    def predictions(self) -> list[Prediction]:
        return [prediction_of(row) for row in self.rows]


def prediction_of(row: dict[str, Any]) -> Prediction:
    text = (row["id"], row["kind"], row["text"], row["predicted"])
    return Prediction(row["index"], *text, tuple(row["answers"]), tuple(row["classes"]), row.get("cut", ""))


def predict_all(
    recipe: Recipe,
    ranks: Ranks,
    data: Manifest,
    collator: Collator,
    answering: Callable[[MicroBatch], list[Answer]],
    name: str,
    poll: Callable[[], object],
    partial: Partial | None = None,
) -> Predicted:
    """Called on all ranks; `partial` is the first rank's. `poll` is called between two batches and may raise
    Stopped. Raises UserError or OSError on all ranks alike."""
    share = Share(ranks.rank, ranks.world, recipe.evaluation.batch)
    lines = list(partial.lines) if partial else []
    whole = evaluation_batches(data, share)
    gathered = map(int, ranks.gather([str(json.loads(line)["batch"]) for line in lines]))
    done = sorted({number for number in gathered if number in whole})
    todo = np.delete(np.arange(len(whole)), done) if done else whole
    before = sum(_samples(number, data, share) for number in done)
    if ranks.first and before:
        log.info(f"{name}: resuming after {before} of {data.samples} samples")
    progress = Progress(name, data.samples, "sample", active=ranks.first, done=before)
    source = evaluation_steps(data, collator, share, recipe.data.workers, todo)
    try:
        with torch.no_grad():
            for step, (batch,) in enumerate(ranks.in_step(source)):
                poll()
                numbers = list(map(int, todo[step * share.world : (step + 1) * share.world]))
                answers = answering(batch)
                own = numbers[share.rank : share.rank + 1]  # none in the last step of some ranks
                new = ranks.gather(ranks.together(bound(_lines, own, batch, answers)))
                ranks.together(bound(_keep, partial, new))
                lines += new if ranks.first else []
                progress.advance(sum(_samples(number, data, share) for number in numbers))
    except Stopped:
        if partial:
            kept = sum(_samples(json.loads(line)["batch"], data, share) for line in lines)
            log.info(f"{name}: {kept} of {data.samples} samples are kept; the same command resumes there")
        raise
    finally:
        progress.close()
    return _joined(lines)


def _keep(partial: Partial | None, lines: list[str]) -> None:
    if partial:
        partial.add(lines)


def _samples(number: int, data: Manifest, share: Share) -> int:
    """Of a batch."""
    return min(share.micro_batch, data.samples - number * share.micro_batch)


def _lines(numbers: list[int], batch: MicroBatch, answers: list[Answer]) -> list[str]:
    """One, or none."""
    return [_line(number, batch, answers) for number in numbers]


def _line(number: int, batch: MicroBatch, answers: list[Answer]) -> str:
    rows = [_row(sample, answer) for sample, answer in zip(batch.samples, answers, strict=True)]
    skipped = [skip.message for skip in batch.skipped]
    return json.dumps({"batch": number, "rows": rows, "skipped": skipped, "cut": batch.cut})


def _row(sample: Sample, answer: Answer) -> dict[str, Any]:
    if any(map(math.isnan, [*(answer.log_likelihoods or ()), answer.log_probability or 0.0])):
        raise UserError(f"{sample.where}: {NOT_FINITE}")
    row = asdict(replace(predict(sample, answer.text), cut=answer.cut))
    if not answer.cut:
        del row["cut"]
    row |= {"question": sample.question, "choices": list(sample.choices)}
    known = {"log_likelihoods": answer.log_likelihoods, "log_probability": answer.log_probability}
    return row | {name: value for name, value in known.items() if value is not None}


def _joined(lines: list[str]) -> Predicted:
    batches = sorted((json.loads(line) for line in lines), key=lambda batch: batch["batch"])
    return Predicted(
        [row for batch in batches for row in batch["rows"]],
        [message for batch in batches for message in batch["skipped"]],
        sum(batch["cut"] for batch in batches),
    )
