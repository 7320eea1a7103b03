"""What is kept of an evaluation that was interrupted, and what is thrown away."""

import itertools
import json

import pytest

from dsmemvp.config.reading import read_recipe
from dsmemvp.evaluation.evaluate import settings_of_answers
from dsmemvp.evaluation.partial import Partial

BELONGS = {"evaluation": "captions off", "checkpoint": [12, "ab"], "collator": {"slots": 4, "image": {"size": 2}}}


def line(number: int) -> str:
    return json.dumps({"batch": number, "rows": [{"text": "ä"}]})


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "evaluation" / "captions-off.jsonl"
    partial = Partial(path, BELONGS)
    assert partial.lines == []
    partial.add([line(0), line(2)])
    partial.add([])
    partial.add([line(1)])
    return path


def test_the_same_evaluation_finds_its_batches(path):
    assert Partial(path, json.loads(json.dumps(BELONGS))).lines == [line(0), line(2), line(1)]
    again = Partial(path, BELONGS)
    again.add([line(3)])
    assert Partial(path, BELONGS).lines == [line(0), line(2), line(1), line(3)]


@pytest.mark.parametrize("changed", [{"checkpoint": [13, "ab"]}, {"collator": {"slots": 5}}, {"more": 1}])
def test_another_one_starts_anew(path, changed):
    assert Partial(path, {**BELONGS, **changed}).lines == []
    assert Partial(path, BELONGS).lines == []


@pytest.mark.parametrize("left", [line(3)[:-4], line(3), "\n", "[1]\n", "{\n", "\xff\n", '{"batch": "3"}\n'])
def test_what_is_no_whole_line_goes(path, left):
    with path.open("a", encoding="latin-1") as file:
        file.write(left)
    again = Partial(path, BELONGS)
    assert again.lines == [line(0), line(2), line(1)]
    again.add([line(3)])
    assert Partial(path, BELONGS).lines[-1] == line(3)


def test_a_file_cut_off_in_its_first_line_starts_anew(path):
    path.write_text(path.read_text()[:20])
    assert Partial(path, BELONGS).lines == []


def test_nothing_is_left_once_it_is_removed(path):
    other = Partial(path.with_name("captions-on.jsonl"), BELONGS)
    Partial(path, BELONGS).remove()
    assert not path.exists() and path.parent.exists()
    other.remove()
    assert not path.parent.exists()


def test_two_that_end_at_the_same_time_do_not_trip_over_each_other(tmp_path):
    one, other = (Partial(tmp_path / "evaluation" / "x.jsonl", {"a": 1}) for _ in range(2))
    one.remove()
    other.remove()
    assert not (tmp_path / "evaluation").exists()


def test_another_quantisation_of_the_base_is_another_evaluation(recipe_path):
    nf4 = ["model.quantize=nf4"]
    given = ([], ["model.quantize=int8"], nf4, [*nf4, "model.nf4_scales=largest"])
    found = [settings_of_answers(read_recipe(recipe_path, settings)) for settings in given]
    assert all(one != other for one, other in itertools.combinations(found, 2))
