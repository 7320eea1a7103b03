"""Three figures of a study, as PNG; none without matplotlib, which the extra `compare` brings."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dsmemvp.comparison.costs import Cost
from dsmemvp.comparison.results import Results
from dsmemvp.comparison.statistics import estimates
from dsmemvp.log import log


def draw(results: Results, costs: dict[str, Cost], out: Path) -> list[tuple[str, str]]:
    """(file's name, what it shows) of each."""
    if find_spec("matplotlib") is None:
        log.info("no figures: matplotlib is not installed; pip install 'dsmemvp[compare]'")
        return []
    from matplotlib.figure import Figure

    made = []
    for name, about, paint in (
        ("scores.png", "Scores with 95 % intervals", _scores),
        ("cost.png", "Score against the FLOPs of a training step", _cost),
        ("curves.png", "Training loss, mean and range over seeds", _curves),
    ):
        figure = Figure(figsize=(7, 4), layout="constrained")
        paint(figure.subplots(), results, costs)
        figure.savefig(out / name, dpi=120, metadata={"Software": None})
        made.append((name, about))
    return made


def _scores(axes: Any, results: Results, costs: dict[str, Cost]) -> None:
    for shift, (label, points) in enumerate((("with images", results.seeing), ("blind", results.blind))):
        if points:
            found = estimates(points)
            values = [own.value for own in found.values()]
            reach = [[own.value - own.low for own in found.values()], [own.high - own.value for own in found.values()]]
            axes.errorbar(values, np.arange(len(found)) + 0.15 * shift, xerr=reach, fmt="o", capsize=3, label=label)
    axes.set_yticks(range(len(results.seeing)), list(results.seeing))
    axes.invert_yaxis()
    axes.set_xlabel("score, %")
    axes.legend()


def _cost(axes: Any, results: Results, costs: dict[str, Cost]) -> None:
    for name, own in estimates(results.seeing).items():
        flops = costs[name].flops / 1e9
        axes.errorbar([flops], [own.value], yerr=[[own.value - own.low], [own.high - own.value]], fmt="o", capsize=3)
        axes.annotate(name, (flops, own.value), xytext=(5, 5), textcoords="offset points")
    axes.set_xlabel("GFLOP per sample and training step")
    axes.set_ylabel("score, %")


def _curves(axes: Any, results: Results, costs: dict[str, Cost]) -> None:
    for name, curves in results.curves.items():
        steps = [step for step, _ in curves[0]]
        losses = np.array([[loss for _, loss in curve] for curve in curves])
        (line,) = axes.plot(steps, losses.mean(0), label=name)
        axes.fill_between(steps, losses.min(0), losses.max(0), alpha=0.2, color=line.get_color())
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.legend()
