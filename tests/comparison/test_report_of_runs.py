"""The report of runs that are there."""

import json
from pathlib import Path

import pytest
import yaml

from dsmemvp.comparison.guards import Checked
from dsmemvp.comparison.report import write_report
from dsmemvp.comparison.running import evaluation_file, recipe_for, run_name
from dsmemvp.comparison.study import read_study


@pytest.fixture
def study(recipe_path, demo_shards, tmp_path):
    content = {"recipe": str(recipe_path), "seeds": [0, 1], "blind": False, "contenders": {"a": {}, "b": {}}}
    content |= {"set": {"data.validation": str(demo_shards)}, "tune": {"method.slots": [24, 48]}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    return read_study(tmp_path / "study.yaml", tmp_path / "out")


def _leave(study, curve: dict[int, float], seed: int) -> None:
    for contender in study.contenders:
        recipe = recipe_for(contender, run_name(contender, seed), seed, ())
        file = evaluation_file(recipe, False, "predictions", "jsonl")
        file.parent.mkdir(parents=True)
        same = {"evaluation": "captions off", "kind": "open", "text": "x", "answers": ["x"], "classes": []}
        rows = [same | {"index": i, "id": str(i), "predicted": "xy"[i % 2]} for i in range(4)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        lines = [{"step": step, "loss/train": loss} for step, loss in curve.items()]
        (file.parent / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_costs_are_of_the_chosen_trial_and_a_curve_may_lack_a_step(study, tmp_path):
    """A training writes no row if the loss of all steps since the one before was not finite."""
    _leave(study, {1: 2.0, 2: 1.5, 3: 1.0}, seed=0)
    _leave(study, {1: 2.5, 3: 1.25}, seed=1)
    out = tmp_path / "out"
    (out / "tuned").mkdir(parents=True)
    trials = [{"settings": list(settings), "validation_loss": 1.0} for settings in study.contenders[0].trials]
    for name, chosen in (("a", 0), ("b", 1)):
        content = {"searched": [], "trials": trials, "chosen": chosen}
        (out / "tuned" / f"{name}.json").write_text(json.dumps(content))
    assert "| a " in write_report(study, out, Checked([], 40.0, {}))
    report = json.loads((out / "report.json").read_text())
    fewer, more = (report["costs"][name]["trained"] for name in "ab")
    width = json.loads((Path(study.contenders[0].recipe.model.language_model) / "config.json").read_text())
    assert more - fewer == 2 * 24 * width["hidden_size"]  # a key and a value for each slot more
    assert (out / "curves.png").is_file()
