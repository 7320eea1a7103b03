"""Figures of a study, as PNG; none without matplotlib, which the extra `compare` brings."""

from functools import partial
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from dsmemvp.comparison.calibration import Calibration
from dsmemvp.comparison.costs import Cost
from dsmemvp.comparison.statistics import Estimate
from dsmemvp.log import log

Estimates = dict[str, Estimate]
Curves = dict[str, list[list[tuple[int, float]]]]
MARKERS = "os^vD<>P*X"


def draw(
    seeing: Estimates,
    blind: Estimates,
    costs: dict[str, Cost],
    curves: Curves,
    calibrations: dict[str, Calibration],
    out: Path,
) -> list[tuple[str, str]]:
    """(file's name, what it shows) of each; all by the contender's name, `curves` as in results.py."""
    if find_spec("matplotlib") is None:
        log.info("no figures: matplotlib is not installed; pip install 'dsmemvp[compare]'")
        return []
    from matplotlib.figure import Figure

    made = []
    pictures = [
        ("scores.png", "Scores with 95 % intervals", partial(_scores, seeing=seeing, blind=blind)),
        ("cost.png", "Score against the FLOPs of a training step", partial(_cost, seeing=seeing, costs=costs)),
        ("curves.png", "Training loss, mean and range over seeds", partial(_curves, curves=curves)),
    ]
    if calibrations:
        about = "How often answers are right, by how sure the model is"
        pictures.append(("reliability.png", about, partial(_reliability, calibrations=calibrations)))
    for name, about, paint in pictures:
        figure = Figure(figsize=(7, 4), layout="constrained")
        paint(figure.subplots())
        figure.savefig(out / name, dpi=120, metadata={"Software": None})
        made.append((name, about))
    return made


def _scores(axes: Any, seeing: Estimates, blind: Estimates) -> None:
    for shift, (label, found) in enumerate((("with images", seeing), ("blind", blind))):
        if found:
            values = [own.value for own in found.values()]
            reach = [[own.value - own.low for own in found.values()], [own.high - own.value for own in found.values()]]
            axes.errorbar(values, np.arange(len(found)) + 0.15 * shift, xerr=reach, fmt="o", capsize=3, label=label)
    axes.set_yticks(range(len(seeing)), list(seeing))
    axes.invert_yaxis()
    axes.set_xlabel("score, %")
    axes.legend()


def _cost(axes: Any, seeing: Estimates, costs: dict[str, Cost]) -> None:
    for marker, (name, own) in zip(cycle(MARKERS), seeing.items(), strict=False):
        reach = [[own.value - own.low], [own.high - own.value]]
        axes.errorbar([costs[name].flops / 1e9], [own.value], reach, fmt=marker, capsize=3, alpha=0.7, label=name)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside the points: names among them would cover one another
    axes.set_xlabel("GFLOP per sample and training step")
    axes.set_ylabel("score, %")


def _curves(axes: Any, curves: Curves) -> None:
    for name, own in curves.items():
        by_step = [dict(curve) for curve in own]  # a row is missing if no step since the one before was finite
        steps = [step for step in by_step[0] if all(step in curve for curve in by_step)]
        losses = np.array([[curve[step] for step in steps] for curve in by_step])
        (line,) = axes.plot(steps, losses.mean(0), label=name)
        axes.fill_between(steps, losses.min(0), losses.max(0), alpha=0.2, color=line.get_color())
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.legend()


def _reliability(axes: Any, calibrations: dict[str, Calibration]) -> None:
    axes.plot([0, 100], [0, 100], color="grey", linestyle=":", label="as often as it is sure")
    for name, own in calibrations.items():
        sure, right, _ = zip(*own.bins, strict=True)
        axes.plot(sure, right, marker="o", label=f"{name}, error {own.error:.1f}")
    axes.set_xlabel("confidence, %")
    axes.set_ylabel("right, %")
    axes.legend()
