"""A study's results -> OUT/report.json for programs, OUT/report.md for people, figures, TensorBoard's table.

report.json is the same byte for byte however often the study was interrupted, but for what stands under "times".
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.summary import hparams

from dsmemvp.atomic_files import replace_file
from dsmemvp.comparison.costs import Cost, cost_of
from dsmemvp.comparison.figures import draw
from dsmemvp.comparison.results import Results, collect
from dsmemvp.comparison.statistics import Difference, Estimate, differences, estimates
from dsmemvp.comparison.study import Contender, Study
from dsmemvp.counting import counted
from dsmemvp.markdown import table
from dsmemvp.training.event_file import EventFile


def write_report(study: Study, out: Path, remarks: Sequence[str]) -> str:
    """Returns report.md's text. Raises UserError or OSError."""
    results = collect(study)
    costs = {contender.name: cost_of(contender) for contender in study.contenders}
    content = as_json(study, results, costs, _tuned(out), remarks)
    replace_file(out / "report.json", (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    text = as_markdown(study, results, costs, _tuned(out), remarks) + _figures(study, results, costs, out)
    replace_file(out / "report.md", text.encode())
    for contender in study.contenders:
        _show(contender, results, _tuned(out), out)
    return text


def _tuned(out: Path) -> dict[str, Any]:
    """Contender -> its trials and the chosen one."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("tuned/*.json"))}


def as_json(
    study: Study, results: Results, costs: dict[str, Cost], tuned: dict[str, Any], remarks: Sequence[str]
) -> dict[str, Any]:
    blind = {name: asdict(own) for name, own in estimates(results.blind).items()} if results.blind else {}
    return {
        "study": study.name,
        "seeds": study.settings.seeds,
        "samples": results.samples,
        "remarks": list(remarks),
        "tuned": tuned,
        "scores": {name: asdict(own) for name, own in estimates(results.seeing).items()},
        "blind": blind,
        "differences": [asdict(own) | {"found": own.found} for own in differences(results.seeing)],
        "seeing_less_blind": [asdict(own) | {"found": own.found} for own in _gains(results)],
        "costs": {name: asdict(cost) for name, cost in costs.items()},
        "curves": results.curves,
        "times": {"samples_per_second": results.samples_per_second},
    }


def _gains(results: Results) -> list[Difference]:
    """Of every contender with images less itself without."""
    pairs = [differences({name: own, f"{name}, blind": results.blind[name]}) for name, own in results.seeing.items()]
    return [pair for (pair,) in pairs] if results.blind else []


def as_markdown(
    study: Study, results: Results, costs: dict[str, Cost], tuned: dict[str, Any], remarks: Sequence[str]
) -> str:
    seeds = ", ".join(map(str, study.settings.seeds))
    trials = max(len(contender.trials) for contender in study.contenders)
    lines = [
        f"# {study.name}",
        "",
        f"{counted(len(study.contenders), 'contender')}, {counted(len(study.settings.seeds), 'seed')} ({seeds}),"
        f" {counted(results.samples, 'test sample')}; {counted(trials, 'trial')} for each trained one. Scores are in"
        " per cent, with 95 % intervals over test samples and seeds.",
        "",
        *_scores(results, costs, tuned),
        "",
        "## Differences",
        "",
        *(_said(own) for own in differences(results.seeing)),
        "",
        *([f"- {_gain(own)}" for own in _gains(results)] or ["Not evaluated blind."]),
        "",
        "p after Holm's correction over all pairs; h is Cohen's effect size. Seeing and blind are compared one by one.",
        "",
        "## Data",
        "",
        *(f"- {remark}" for remark in remarks),
    ]
    return "\n".join(lines) + "\n"


def _scores(results: Results, costs: dict[str, Cost], tuned: dict[str, Any]) -> list[str]:
    seeing, blind = estimates(results.seeing), estimates(results.blind) if results.blind else {}
    names = list(seeing)
    columns = [
        ["contender", *names],
        ["score", *(_interval(seeing[name]) for name in names)],
        *([["blind", *(_interval(blind[name]) for name in names)]] if blind else []),
        ["trained", *(f"{costs[name].trained:,}" for name in names)],
        ["tokens", *(f"{costs[name].decoder_tokens:.0f}" for name in names)],
        ["GFLOP/sample", *(f"{costs[name].flops / 1e9:.3g}" for name in names)],
        ["kept MiB/sample", *(f"{costs[name].kept / 2**20:.3g}" for name in names)],
        ["sent MB/step", *(f"{costs[name].sent / 1e6:.3g}" for name in names)],
        ["chosen", *(_chosen(tuned.get(name)) for name in names)],
    ]
    return table(columns, left=1)


def _interval(own: Estimate) -> str:
    return f"{own.value:.2f} [{own.low:.2f}, {own.high:.2f}]"


def _chosen(tuned: dict[str, Any] | None) -> str:
    return " ".join(tuned["trials"][tuned["chosen"]]["settings"]) if tuned else "-"


def _said(own: Difference) -> str:
    numbers = f"{_interval(own.estimate)}, p = {own.holm:.2g}, h = {own.effect:.2f}"
    if not own.found:
        return f"- {own.first} and {own.second}: no difference found ({numbers})"
    better, worse = (own.first, own.second) if own.estimate.value > 0 else (own.second, own.first)
    return f"- {better} is above {worse}: {own.first} less {own.second} {numbers}"


def _gain(own: Difference) -> str:
    numbers = f"{_interval(own.estimate)}, p = {own.estimate.p:.2g}"
    return f"{own.first} with images less blind: {numbers}" + "; no difference found" * (not own.found)


def _figures(study: Study, results: Results, costs: dict[str, Cost], out: Path) -> str:
    names = draw(results, costs, out)
    return "".join(f"\n![{about}]({name})\n" for name, about in names)


def _show(contender: Contender, results: Results, tuned: dict[str, Any], out: Path) -> None:
    """A row of TensorBoard's HParams table."""
    own = contender.recipe
    settings: dict[str, Any] = {"method": own.method.name, "learning_rate": own.training.learning_rate}
    if contender.name in tuned:
        settings["chosen"] = _chosen(tuned[contender.name])
    scores = {"score/test": 100 * float(results.seeing[contender.name].mean())}
    if results.blind:
        scores["score/blind"] = 100 * float(results.blind[contender.name].mean())
    folder = out / "hparams" / contender.name
    for file in folder.glob("events.*"):  # of a report before this one
        file.unlink()
    with EventFile(folder) as board:
        for summary in hparams(settings, scores):
            board.add_summary(summary)
        for name, score in scores.items():
            board.add_scalar(name, score, 0)
