"""What a study's runs have left, put side by side sample by sample."""

import json

import pytest

from dsmemvp.comparison.results import collect
from dsmemvp.comparison.running import evaluation_file, recipe_for, run_name
from dsmemvp.comparison.study import read_study
from dsmemvp.errors import UserError

NONE = "{method: {name: none}}"


@pytest.fixture
def study(recipe_path, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(f"recipe: {recipe_path}\nseeds: [0]\ncontenders: {{a: {NONE}, b: {NONE}}}\n")
    return read_study(path, tmp_path / "out", [])


def _leave(study, name: str, blind: bool, right: dict[int, bool]) -> None:
    """A run's predictions: sample -> whether it is answered rightly."""
    contender = next(c for c in study.contenders if c.name == name)
    file = evaluation_file(recipe_for(contender, run_name(contender, 0), 0, ()), blind, "predictions", "jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    same = {"evaluation": "captions off", "kind": "open", "text": "x", "answers": ["x"], "classes": []}
    rows = [same | {"index": i, "id": str(i), "predicted": "x" if yes else "y"} for i, yes in right.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_samples_are_paired_by_their_number(study):
    _leave(study, "a", False, {0: True, 1: False, 2: False})
    _leave(study, "b", False, {2: True, 0: False, 1: False})
    for name in "ab":  # blind the damaged picture of sample 3 was not opened
        _leave(study, name, True, {0: False, 1: True, 2: True, 3: False})
    found = collect(study)
    assert found.seeing["a"].tolist() == [[1, 0, 0]] and found.seeing["b"].tolist() == [[0, 0, 1]]
    assert found.blind["a"].tolist() == [[0, 1, 1]] and found.samples == 3


@pytest.mark.parametrize(("of_b", "blind"), [((0, 2), (0, 1, 2)), ((0, 1, 2), (0, 1, 2)), ((0, 1), (0, 2))])
def test_as_many_other_samples_are_no_pairs(study, of_b, blind):
    _leave(study, "a", False, dict.fromkeys((0, 1), True))
    _leave(study, "b", False, dict.fromkeys(of_b, True))
    for name in "ab":
        _leave(study, name, True, dict.fromkeys(blind, True))
    with pytest.raises(UserError, match="different test samples"):
        collect(study)
