"""A study's results -> OUT/report.json for programs, OUT/report.md for people, figures, TensorBoard's table.

report.json is the same byte for byte however often the study was interrupted, but for what stands under "times", and
for the first point of a curve behind an interruption: it is the mean since then, not since the point before.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.summary import hparams

from dsmemvp.atomic_files import replace_file
from dsmemvp.comparison.budget import spans
from dsmemvp.comparison.calibration import Calibration, calibration
from dsmemvp.comparison.costs import Cost, cost_of
from dsmemvp.comparison.figures import draw
from dsmemvp.comparison.guards import Checked
from dsmemvp.comparison.probe import Pace, known_paces
from dsmemvp.comparison.results import Results, collect
from dsmemvp.comparison.statistics import Difference, Estimate, differences, estimates, same_runs
from dsmemvp.comparison.study import Contender, Study
from dsmemvp.config.reading import as_dict, recipe_of
from dsmemvp.counting import counted
from dsmemvp.errors import UserError
from dsmemvp.markdown import table
from dsmemvp.planning.trace import SUPERVISED
from dsmemvp.training.event_file import EventFile


def write_report(study: Study, out: Path, checked: Checked) -> str:
    """Returns report.md's text. Raises UserError or OSError."""
    found, remarks = _find(study, out, checked.prompt_tokens), checked.remarks
    content = as_json(study, found, remarks)
    replace_file(out / "report.json", (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode(), shared=True)
    names = draw(found.seeing, found.blind, found.costs, found.results.curves, found.calibrations, out)
    text = as_markdown(study, found, remarks) + "".join(f"\n![{about}]({name})\n" for name, about in names)
    replace_file(out / "report.md", text.encode(), shared=True)
    for contender in study.contenders:
        _show(contender, found, out)
    return text


@dataclass(frozen=True)
class _Found:
    """Of every contender by its name."""

    results: Results
    costs: dict[str, Cost]
    tuned: dict[str, Any]
    """Its trials and the chosen one."""
    seeing: dict[str, Estimate]
    blind: dict[str, Estimate]
    differences: list[Difference]
    gains: list[Difference]
    """Of each with images less itself without."""
    calibrations: dict[str, Calibration]
    """Of those whose answers have a probability."""
    paces: dict[str, Pace]
    """Of those that were measured."""
    steps: dict[str, int]
    """Of each trained one's training, its last stage."""


def _find(study: Study, out: Path, prompt_tokens: float) -> _Found:
    results = collect(study)
    tuned = _tuned(out)
    costs = {c.name: cost_of(_as_found(c, tuned.get(c.name)), prompt_tokens) for c in study.contenders}
    seeing, blind = estimates(results.seeing), estimates(results.blind)
    calibrations = {name: calibration(own, results.seeing[name]) for name, own in results.confidence.items()}
    told = differences(results.seeing), _gains(results)
    last = {c.name: spans(c.recipe)[-1] for c in study.contenders if c.trains}
    steps = {name: span.last - span.first for name, span in last.items()}
    return _Found(results, costs, tuned, seeing, blind, *told, calibrations, known_paces(study, out), steps)


def _as_found(contender: Contender, tuned: dict[str, Any] | None) -> Contender:
    """With the value that its search has found, and the settings of its best trial."""
    return replace(contender, recipe=recipe_of(as_dict(contender.recipe), contender.name, _settings(tuned)))


def _tuned(out: Path) -> dict[str, Any]:
    """Contender -> its trials and the chosen one."""
    found = {}
    for path in sorted(out.glob("tuned/*.json")):
        try:
            found[path.stem] = own = json.loads(path.read_text(encoding="utf-8"))
            _settings(own)
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise UserError(f"{path} is damaged; delete it, and start the study again") from None
    return found


def as_json(study: Study, found: _Found, remarks: Sequence[str]) -> dict[str, Any]:
    return {
        "study": study.name,
        "seeds": study.settings.seeds,
        "samples": found.results.samples,
        "remarks": list(remarks),
        "tuned": found.tuned,
        "steps": found.steps,
        "scores": {name: asdict(own) for name, own in found.seeing.items()},
        "blind": {name: asdict(own) for name, own in found.blind.items()},
        "differences": [asdict(own) | {"found": own.found} for own in found.differences],
        "seeing_less_blind": [asdict(own) | {"found": own.found} for own in found.gains],
        "costs": {name: asdict(cost) for name, cost in found.costs.items()},
        "calibration": {name: asdict(own) for name, own in found.calibrations.items()},
        "curves": found.results.curves,
        "times": {
            "samples_per_second": found.results.samples_per_second,
            "probe": {name: asdict(pace) for name, pace in found.paces.items()},
        },
    }


def _gains(results: Results) -> list[Difference]:
    """Of every contender with images less itself without."""
    return [same_runs(name, f"{name}, blind", results.seeing[name], own) for name, own in results.blind.items()]


def as_markdown(study: Study, found: _Found, remarks: Sequence[str]) -> str:
    seeds = ", ".join(map(str, study.settings.seeds))
    trials = max(len(contender.trials) for contender in study.contenders)
    lines = [
        f"# {study.name}",
        "",
        f"{counted(len(study.contenders), 'contender')}, {counted(len(study.settings.seeds), 'seed')} ({seeds}),"
        f" {counted(found.results.samples, 'test sample')};"
        f" {counted(trials, 'trial')} for each trained one. Scores are in"
        " per cent, with 95 % intervals over test samples and seeds.",
        "",
        *_scores(found),
        "",
        "## Differences",
        "",
        *(_said(own) for own in found.differences),
        "",
        *([f"- {_gain(own)}" for own in found.gains] or ["Not evaluated blind."]),
        "",
        "p after Holm's correction over all pairs; h is Cohen's effect size. Seeing and blind are compared one by one.",
        "",
        "## Calibration and answers",
        "",
        *_answers(found),
        "",
        "## Data",
        "",
        *(f"- {remark}" for remark in remarks),
    ]
    return "\n".join(lines) + "\n"


def _scores(found: _Found) -> list[str]:
    seeing, blind, costs, tuned = found.seeing, found.blind, found.costs, found.tuned
    names = list(seeing)
    columns = [
        ["contender", *names],
        ["score", *(_interval(seeing[name]) for name in names)],
        *([["blind", *(_interval(blind[name]) for name in names)]] if blind else []),
        ["steps", *(str(found.steps.get(name, 0)) for name in names)],
        ["trained", *(f"{costs[name].trained:,}" for name in names)],
        ["tokens", *(f"{costs[name].decoder_tokens:.0f}" for name in names)],
        ["GFLOP/sample", *(f"{costs[name].flops / 1e9:.3g}" for name in names)],
        ["kept MiB/sample", *(f"{costs[name].kept / 2**20:.3g}" for name in names)],
        ["sent MB/step", *(_megabytes(costs[name].sent) for name in names)],
        ["chosen", *(" ".join(_settings(tuned.get(name))) or "-" for name in names)],
    ]
    return table(columns, left=1)


def _answers(found: _Found) -> list[str]:
    """What an answer costs, and whether the model knows how sure it may be."""
    names = list(found.seeing)
    paces, calibrations = found.paces, found.calibrations
    columns = [
        ["contender", *names],
        ["GFLOP/answer", *(f"{found.costs[name].answer / 1e9:.3g}" for name in names)],
        ["s/answer", *(f"{paces[name].answer:.3g}" if name in paces else "-" for name in names)],
        ["calibration error", *(f"{calibrations[name].error:.2f}" if name in calibrations else "-" for name in names)],
    ]
    said = [
        *table(columns, left=1),
        "",
        f"FLOPs of a prompt with an image and {SUPERVISED} tokens behind it; seconds as measured before the study, all"
        " ranks together.",
    ]
    if len(calibrations) < len(names):
        said += [
            "",
            "No calibration error (-): predictions.jsonl holds no probability of what was answered. To have them,"
            " delete it and evaluation.json in the contender's runs, and start the study again.",
        ]
    return said


def _megabytes(sent: float | None) -> str:
    return "-" if sent is None else f"{sent / 1e6:.3g}"


def _interval(own: Estimate) -> str:
    return f"{own.value:.2f} [{own.low:.2f}, {own.high:.2f}]"


def _settings(tuned: dict[str, Any] | None) -> list[str]:
    if not tuned:
        return []
    chosen = tuned["trials"][tuned["chosen"]]["settings"] if tuned["trials"] else []
    return [*tuned["searched"], *chosen]


def _said(own: Difference) -> str:
    numbers = f"{_interval(own.estimate)}, p = {own.holm:.2g}, h = {own.effect:.2f}"
    if not own.found:
        return f"- {own.first} and {own.second}: no difference found ({numbers})"
    better, worse = (own.first, own.second) if own.estimate.value > 0 else (own.second, own.first)
    return f"- {better} is above {worse}: {own.first} less {own.second} {numbers}"


def _gain(own: Difference) -> str:
    numbers = f"{_interval(own.estimate)}, p = {own.estimate.p:.2g}"
    return f"{own.first} with images less blind: {numbers}" + "; no difference found" * (not own.found)


def _show(contender: Contender, found: _Found, out: Path) -> None:
    """A row of TensorBoard's HParams table."""
    own = contender.recipe
    settings: dict[str, Any] = {"method": own.method.name, "learning_rate": own.training.learning_rate}
    if contender.name in found.tuned:
        settings["chosen"] = " ".join(_settings(found.tuned[contender.name]))
    scores = {"score/test": found.seeing[contender.name].value}
    if found.blind:
        scores["score/blind"] = found.blind[contender.name].value
    folder = out / "hparams" / contender.name
    for file in folder.glob("events.*"):  # of a report before this one
        file.unlink()
    with EventFile(folder) as board:
        for summary in hparams(settings, scores):
            board.add_summary(summary)
        for name, score in scores.items():
            board.add_scalar(name, score, 0)
