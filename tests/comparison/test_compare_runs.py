"""Whole studies: interrupted or not, on one rank or two, they end in the same report."""

import itertools
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import yaml
from faulty import Ranks

from data_prep.demo import sample
from data_prep.shards import write_shards
from dsmemvp.fault_tolerance.holder import own_holder
from dsmemvp.fault_tolerance.lease import Lease

CONTENDERS = {
    "memvp": {},
    "none": {"method": {"name": "none"}},
}


@pytest.fixture
def study(recipe_path, demo_shards, tmp_path):
    content = {
        "recipe": str(recipe_path),
        "contenders": CONTENDERS,
        "tune": {"training.learning_rate": [1e-3, 1e-2]},
        "seeds": [0, 1],
        "budget": {"steps": 4},
        "leaks": "report",
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    settings = [f"data.validation={demo_shards}", "training.log_every=1"]
    return [str(path), *(part for setting in settings for part in ("--set", setting))]


def _compare(study, out: Path, ranks: int = 1, until: str = "", by: int = signal.SIGKILL) -> list[int]:
    """Exit codes. `until`: the signal comes as soon as a folder or file of that name is in the study's."""
    with Ranks(["compare", *study, "--out", str(out)], out.with_name(f"{out.name}-logs"), ranks=ranks) as started:
        if until:
            limit = time.monotonic() + 120
            while not list(out.glob(until)):
                assert time.monotonic() < limit and started.processes[0].poll() is None, started.said(0)
                time.sleep(0.02)
            for process in started.processes:
                os.kill(process.pid, by)
        ended = started.ended()
    assert until or ended.codes == [0] * ranks, ended.text
    return ended.codes


def _report(out: Path) -> dict:
    content = json.loads((out / "report.json").read_text())
    content.pop("times")
    return content


@pytest.mark.slow
@pytest.mark.ranks
def test_a_study_that_was_killed_and_asked_to_end_says_what_one_says_that_was_not(study, tmp_path):
    whole, parts, two = tmp_path / "whole", tmp_path / "parts", tmp_path / "two"
    _compare(study, whole)
    _compare(study, parts, until="runs/memvp-trial-1/checkpoints/step-*")
    assert _compare(study, parts, until="runs/memvp-seed-0/metrics.jsonl", by=signal.SIGTERM) == [75]
    _compare(study, parts)
    assert _report(parts) == _report(whole)
    starts = [
        len((run / "starts.jsonl").read_text().splitlines()) for run in parts.glob("runs/*-*") if "none" not in run.name
    ]
    assert sorted(starts)[:-2] == [1] * (len(starts) - 2)  # what was finished was not done again

    report = _report(whole)
    assert report["samples"] == 48 and report["seeds"] == [0, 1]
    assert {name: len(own["seeds"]) for name, own in report["scores"].items()} == {"memvp": 2, "none": 1}
    assert [(own["first"], own["second"]) for own in report["differences"]] == [("memvp", "none")]
    for name, own in report["tuned"].items():
        losses = [trial["validation_loss"] for trial in own["trials"]]
        assert len(losses) == 2 and own["chosen"] == losses.index(min(losses)), name
    assert [[step for step, _ in curve] for curve in report["curves"]["memvp"]] == [[1, 2, 3, 4]] * 2
    assert any("48 test samples" in remark or "also in the data of training" in remark for remark in report["remarks"])
    assert (whole / "report.md").read_text().startswith("# study") and list(whole.glob("hparams/*/events.*"))

    _compare(study, two, ranks=2)
    other = _report(two)
    assert other["scores"] == report["scores"] and other["blind"] == report["blind"]


@pytest.mark.slow
@pytest.mark.ranks
def test_the_layer_that_a_search_finds_is_what_all_runs_of_a_contender_have(recipe_path, tmp_path):
    """Measured, planned, searched, trained and reported."""
    rng = random.Random("questions to search by")
    write_shards(
        (sample(rng, f"s{i}", with_picture=True) for i in range(8)), tmp_path / "search", "search", per_shard=8
    )
    dvp = {"name": "dvp", "layer": "search", "width": 8, "heads": 2, "dropout": 0.0}
    content = {
        "recipe": str(recipe_path),
        "set": {
            "data.search": str(tmp_path / "search"),
            "search": {"epochs": 0.5, "draws": 2},
            "evaluation": {"protocol": "likelihood", "captions": [False]},
        },
        "contenders": {"dvp": {"method": dvp}, "none": {"method": {"name": "none"}}},
        "seeds": [3],
        "budget": {"seconds": 0.01},
        "leaks": "report",
        "blind": False,
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    number = itertools.count()

    def said(*more: str, code: int = 0) -> str:
        command = ["compare", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out"), *more]
        with Ranks(command, tmp_path / f"logs-{next(number)}", ranks=1) as started:
            ended = started.ended()
        assert ended.codes == [code], ended.text
        return ended.text

    assert "dvp was not measured yet" in said("--task", "0", code=1)
    other = Lease(tmp_path / "out" / "probe" / "dvp", own_holder({}))  # a start that measures at this moment
    assert other.attempt() and "is being trained by" in said("--plan", code=1)
    other.release()
    assert "1 training and 2 evaluations, about" in said("--plan") and not (tmp_path / "out" / "runs").exists()
    whole = said()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (found,) = report["tuned"]["dvp"]["searched"]
    assert found in ("method.layer=0", "method.layer=1") and f"| {found} |" in whole
    run = json.loads((tmp_path / "out" / "runs" / "dvp-seed-3" / "recipe.json").read_text())
    assert found == f"method.layer={run['method']['layer']}"
    # as many steps as the probe says for the seconds: one, since none is as short
    assert [[step for step, _ in curve] for curve in report["curves"]["dvp"]] == [[1]]
    # choices by likelihood, so that every answer has a probability
    for name, own in report["calibration"].items():
        assert sum(count for _, _, count in own["bins"]) == 48, name
    assert list(report["calibration"]) == ["dvp", "none"] and (tmp_path / "out" / "reliability.png").exists()

    # another study changes nothing of this one, which goes on where something was lost
    out = tmp_path / "out"
    kept = {path: path.read_bytes() for path in (out / "probe" / "dvp.json", out / "report.json", out / "study.json")}
    for way in ("--plan", "--report"):
        assert "is of other settings" in said(way, "--set", "training.weight_decay=0.5", code=1)
    assert kept == {path: path.read_bytes() for path in kept}
    tuned, trials = out / "tuned" / "dvp.json", (out / "tuned" / "dvp.json").read_bytes()
    tuned.write_text('{"trials": [')
    assert f"{tuned} is damaged; delete it, and start the study again" in said("--report", code=1)
    tuned.write_bytes(trials)
    (predictions,) = (out / "runs" / "dvp-seed-3").glob("predictions*.jsonl")
    answers = predictions.read_bytes()
    predictions.unlink()
    said()
    assert predictions.read_bytes() == answers and json.loads((out / "report.json").read_text()) == report
