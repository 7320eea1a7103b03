"""What a recipe may hold: the range of every number, names that become folders, and bounded work on small files."""

import dataclasses
import json
import typing

import pytest

from dsmemvp.config.reading import check_overrides, read_recipe, recipe_of
from dsmemvp.config.recipe import Recipe
from dsmemvp.errors import UserError


@pytest.fixture
def read(tmp_path):
    """Reads a recipe given as text; a name is added where there is none."""

    def read(text: str, *overrides: str) -> Recipe:
        path = tmp_path / "r.yaml"
        path.write_text(text if text.startswith("name:") else f"name: r\n{text}", encoding="utf-8")
        return read_recipe(path, overrides)

    return read


def _numbers(group=Recipe, prefix="") -> dict[str, type]:
    """Every key of a recipe that is a number, or a list of them."""
    found = {}
    for name, kind in typing.get_type_hints(group).items():
        if dataclasses.is_dataclass(kind):
            found |= _numbers(kind, f"{prefix}{name}.")
        elif kind in (int, float, list[float]):
            found[f"{prefix}{name}"] = kind
    return found


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e300", "1" + "0" * 400])
@pytest.mark.parametrize(("key", "kind"), _numbers().items())
def test_no_number_may_be_infinite_or_beyond_everything_physical(read, key, kind, value):
    """Whatever number is added to the schema."""
    with pytest.raises(UserError, match=f"{key}: must be ") as caught:
        read("data: {train: a}", f"{key}=[{value}, {value}]" if kind == list[float] else f"{key}={value}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("key", "value"),
    [("data.workers", "100000000"), ("training.micro_batch", 10**9), ("seed", 2**64), ("method.slots", 10**9)],
)
def test_a_number_that_no_machine_has_room_for_is_refused_with_its_range(read, key, value):
    with pytest.raises(UserError, match=rf"{key}: must be at least [01] and (at most|below) [\d,]+, is {value}"):
        read("", f"{key}={value}")


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "../x",
        "a/b",
        "-rf",
        ".hidden",
        "a\nb",
        "a\0b",
        "a\tb",
        " a",
        "a ",
        "\u202ex",
        "x" * 101,
        "\u00e9" * 51,
    ],
)
@pytest.mark.parametrize("place", ["file", "override", "json"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(read, name, place):
    with pytest.raises(UserError, match=r"name: (give the run a name|must be text)") as caught:
        if place == "json":
            recipe_of({"name": name}, "checkpoint")
        elif place == "file":
            read(f"name: {json.dumps(name)}")
        else:
            read("", f"name={json.dumps(name)}")
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value)


@pytest.mark.parametrize("name", ["scienceqa-13b", "a b", "v1.2_x", "\u00e9t\u00e9", "x" * 100])
def test_usual_names_are_taken(read, name):
    assert read(f"name: {name}").name == name


@pytest.mark.parametrize("value", ['"a\\0b"', '"a\\nb"', '"\\ud800"', "x" * 5000])
def test_a_path_with_characters_that_no_path_has_is_refused(read, value):
    with pytest.raises(UserError, match=r"model\.tokenizer: must be text of at most 4,096 characters") as caught:
        read(f"model: {{tokenizer: {value}}}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


ALIASES = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (f"{ALIASES}\ndata: {{train: *a11}}", "holds more than 10,000 keys and values"),
        ("data: {train: &a [*a]}", "holds an alias of itself (line 2)"),
        ("data: &a {train: *a}", "holds an alias of itself (line 2)"),
        ("seed: " + "[" * 50_000, "is nested deeper than 16 levels"),
        ("seed: " + "{a: " * 50_000, "is nested deeper than 16 levels"),
        ("seed: " + "[" * 40 + "]" * 40, "is nested deeper than 16 levels"),
        ("\n".join(f"key{i}: {i}" for i in range(100_000)), "bytes, at most 262,144 are read"),
        ("\n".join(f"k{i}: {i}" for i in range(9_000)), "holds more than 10,000 keys and values"),
        ("\n".join(f"k{i}: {i}" for i in range(2_000)), "k999 is one key more than the 1000"),
        ("seed: 0x" + "f" * 9_000, "seed: must be at least 0 and below"),
        ("seed: " + "9" * 9_000, "seed: "),
        ("training: {learning_rate: 0x" + "f" * 9_000 + "}", "training.learning_rate: must be a number"),
        ("seed: 1" + ":59" * 50_000, "has a value of 150,001 characters"),
        ("x" * 900 + ": 1", "unknown key 'xxx"),
        ("data: {train: [" + "[x], " * 2_000 + "]}", "data.train: must be text, not ['x']"),
    ],
    ids=range(15),
)
def test_a_small_file_of_much_work_is_refused_in_one_short_line(read, text, part):
    with pytest.raises(UserError) as caught:
        read(text)
    message = str(caught.value)
    assert part in message and "\n" not in message and len(message) < 500, message[:1000]


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data.train=" + "[" * 50_000, "the value is nested deeper than 16 levels"),
        ("data.train=" + "[&a [x], " + "*a, " * 9_999 + "]", "the value holds more than 10,000 keys and values"),
        ("data.train=" + "x" * 20_000, "the value has a value of 20,000 characters"),
        ("seed=0x" + "f" * 9_000, "seed: must be at least 0 and below"),
        ("x" * 9_000 + "=1", "unknown key 'xxx"),
    ],
    ids=range(5),
)
def test_an_override_of_much_work_is_refused_in_one_short_line(read, override, part):
    with pytest.raises(UserError) as caught:
        read("", override)
    message = str(caught.value)
    assert part in message and "\n" not in message and len(message) < 500, message[:1000]


def test_a_deep_recipe_of_a_checkpoint_is_refused():
    deep: dict = {}
    for _ in range(900):
        deep = {"training": deep, "x": 1}
    with pytest.raises(UserError, match="checkpoint: is nested deeper than 16 levels"):
        recipe_of(deep, "checkpoint")


def test_a_group_may_be_given_as_one_override(read):
    assert read("", "training={epochs: 3, micro_batch: 8}").training.epochs == 3


def test_overrides_are_checked_without_the_recipe():
    check_overrides(["training.epochs=3", "model.tokenizer="])
    with pytest.raises(UserError, match=r"did you mean 'training\.epochs'"):
        check_overrides(["training.epoch=3"])
    with pytest.raises(UserError, match=r"override 'training\.epochs=0': training\.epochs: must be above 0"):
        check_overrides(["training.epochs=0"])


@pytest.mark.parametrize("text", ["just words", "- name: r", "3"])
def test_yaml_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"r\.yaml, line 1: a recipe is a mapping"):
        read_recipe(path)
