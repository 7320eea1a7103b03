"""What the runs of a study have left: points of every test sample, learning curves, times."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsmemvp.comparison.budget import spans
from dsmemvp.comparison.calibration import confidences
from dsmemvp.comparison.running import evaluation_file, recipe_for, run_name, seeds_of
from dsmemvp.comparison.study import Contender, Study
from dsmemvp.errors import UserError
from dsmemvp.evaluation.rescore import read_predictions
from dsmemvp.evaluation.scores import NO_POINTS, UNSCORED, points
from dsmemvp.training.record import rows_of


@dataclass(frozen=True)
class Results:
    seeing: dict[str, np.ndarray]
    """Contender -> points [S, N], 0 to 1."""
    blind: dict[str, np.ndarray]
    """None if the study is not evaluated blind."""
    curves: dict[str, list[list[tuple[int, float]]]]
    """Contender -> for each seed (step, training loss)."""
    samples_per_second: dict[str, list[float]]
    """Of every seed, the median over its log; the only figures that depend on the machine."""
    confidence: dict[str, np.ndarray]
    """Contender -> of the chosen answer with images [S, N], 0 to 1; of those that all have one."""

    @property
    def samples(self) -> int:
        return next(iter(self.seeing.values())).shape[1]


def collect(study: Study) -> Results:
    """Raises UserError for a run that is not there yet, and for runs that were asked different samples."""
    curves, speed = {}, {}
    seeing: dict[str, list[dict[int, float]]] = {}
    blind: dict[str, list[dict[int, float]]] = {}
    for contender in study.contenders:
        seeds = seeds_of(study, contender)
        seeing[contender.name] = [_points(contender, seed, False) for seed in seeds]
        if study.settings.blind:
            blind[contender.name] = [_points(contender, seed, True) for seed in seeds]
        if contender.trains:
            first = spans(contender.recipe)[-1].first  # stages before are no part of what all learn
            rows = [_metrics(contender, seed, first) for seed in seeds]
            curves[contender.name] = [[(r["step"], r["loss/train"]) for r in own if "loss/train" in r] for own in rows]
            speeds = [[r["speed/samples_per_second"] for r in own if "speed/samples_per_second" in r] for own in rows]
            speed[contender.name] = [float(np.median(own)) for own in speeds if own]
    samples = next(iter(seeing.values()))[0].keys()
    # blind, a sample whose picture is damaged is asked, too, and stands beside nothing
    others = [samples - own.keys() for runs in blind.values() for own in runs]
    if any(others) or any(own.keys() != samples for runs in seeing.values() for own in runs):
        counts = {name: sorted({len(own) for own in runs}) for name, runs in seeing.items()}
        said = ", ".join(f"{name} {' and '.join(map(str, own))}" for name, own in counts.items())
        raise UserError(
            f"{study.path}: contenders were evaluated on different test samples ({said}): a file of predictions was"
            " cut, or samples were left out (data.on_bad_sample); delete evaluation and predictions of the runs that"
            " lack some, and start the study again"
        )
    sure = {c.name: [_confidences(c, seed) for seed in seeds_of(study, c)] for c in study.contenders}
    sure = {name: own for name, own in sure.items() if all(of_seed.keys() >= samples for of_seed in own)}
    return Results(_matrices(seeing, samples), _matrices(blind, samples), curves, speed, _matrices(sure, samples))


def _matrices(runs: Mapping[str, list[dict[int, float]]], samples: Iterable[int]) -> dict[str, np.ndarray]:
    order = sorted(samples)
    return {name: np.array([[own[i] for i in order] for own in of_seeds]) for name, of_seeds in runs.items()}


def _points(contender: Contender, seed: int, blind: bool) -> dict[int, float]:
    """Of every sample by its running number, in the first of evaluation.captions."""
    recipe = recipe_for(contender, run_name(contender, seed), seed, ())
    path = evaluation_file(recipe, blind, "predictions", "jsonl")
    if not path.exists():
        raise UserError(f"{path} does not exist: that run is not finished; start the study again")
    try:
        predictions = next(iter(read_predictions(path).values()))
    except UserError as error:
        table = evaluation_file(recipe, blind)
        raise UserError(f"{error}; for a study, delete {path} and {table}, and start it again") from None
    if any(p.kind in UNSCORED for p in predictions):
        raise UserError(f"{path}: {NO_POINTS}")
    return {p.index: points(p) for p in predictions}


def _confidences(contender: Contender, seed: int) -> dict[int, float]:
    path = evaluation_file(recipe_for(contender, run_name(contender, seed), seed, ()), False, "predictions", "jsonl")
    return confidences(path, next(iter(read_predictions(path))))


def _metrics(contender: Contender, seed: int, first: int) -> list[dict[str, Any]]:
    """Rows behind step `first`, from which they count on."""
    rows = rows_of(Path(contender.recipe.output) / run_name(contender, seed) / "metrics.jsonl")
    return [row | {"step": row["step"] - first} for row in rows if row["step"] > first]
