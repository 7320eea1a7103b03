"""The JSON Schema of recipes: the keys, sentences and ranges of the fields, one alternative for each method."""

from pathlib import Path

import pytest
import yaml

from dsmemvp.config.conversion import keys_of
from dsmemvp.config.json_schema import recipe_schema
from dsmemvp.config.methods import method_names, setting_names
from dsmemvp.config.recipe import Recipe

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
TYPES = {"integer": int, "number": (int, float), "string": str, "boolean": bool, "array": list, "object": dict}


@pytest.fixture(scope="module")
def schema() -> dict:
    return recipe_schema()


def _resolved(schema: dict, part: dict) -> dict:
    return schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part


def _fits(schema: dict, part: dict, value) -> bool:
    """As much of JSON Schema as a recipe's uses."""
    part = _resolved(schema, part)
    for key, rule in (("anyOf", any), ("oneOf", lambda found: sum(found) == 1)):
        if key in part:
            return rule([_fits(schema, each, value) for each in part[key]])
    kind = TYPES[part["type"]]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return False
    if isinstance(value, dict):
        if "properties" not in part:  # any names
            return all(_fits(schema, part["additionalProperties"], inside) for inside in value.values())
        known = part["properties"]
        return (
            set(part.get("required", ())) <= value.keys() <= known.keys() and part["additionalProperties"] is False
        ) and all(_fits(schema, known[key], inside) for key, inside in value.items())
    if isinstance(value, list):
        return all(_fits(schema, part["items"], each) for each in value)
    return (
        value in part.get("enum", [value])
        and value == part.get("const", value)
        and (kind is str or part.get("minimum", value) <= value <= part.get("maximum", value))
        and ("exclusiveMinimum" not in part or value > part["exclusiveMinimum"])
        and ("exclusiveMaximum" not in part or value < part["exclusiveMaximum"])
    )


def _recipe(**changed) -> dict:
    return {"name": "x", "method": {"name": "memvp", "slots": 4}, **changed}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_fit(schema, path):
    assert _fits(schema, schema, yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("recipe", "fits"),
    [
        (_recipe(), True),
        (_recipe(method={"slots": 4}), True),
        (_recipe(method={"name": "input_space", "lora_rank": 4, "lora_targets": "q_proj"}), True),
        (_recipe(method={"name": "none"}), True),
        (_recipe(data={"train": "a"}), True),
        (_recipe(data={"train": ["a", "b"], "passes": [1, 0.5]}), True),
        (_recipe(data={"train": ["a", "b"], "passes": [1, 0]}), False),
        (_recipe(method={"name": "memvp", "lora_rank": 4}), False),
        (_recipe(method={"name": "input_space", "slots": 4}), False),
        (_recipe(method={"name": "dance"}), False),
        (_recipe(training={"epochs": 0}), False),
        (_recipe(training={"epoch": 1}), False),
        (_recipe(training={"epochs": "3"}), False),
        (_recipe(vision={"adapter_dropout": 1}), False),
        (_recipe(model={"dtype": "fp16"}), False),
        ({"seed": 1}, False),
        (_recipe(stages={"text": {"data": {"train": "a"}, "training": {"epochs": 1}, "start_from": "runs/a"}}), True),
        (_recipe(stages={"text": {"training": {"epochs": 0}}}), False),
        (_recipe(stages={"text": {"training": {"log_every": 1}}}), False),
        (_recipe(stages={"text": {"model": {"dtype": "fp32"}}}), False),
    ],
)
def test_it_tells_what_fits(schema, recipe, fits):
    assert _fits(schema, schema, recipe) is fits


def test_it_has_every_key_with_its_sentence(schema):
    keys = set()
    for name, part in schema["properties"].items():
        inside = _resolved(schema, part).get("properties")
        keys |= {f"{name}.{key}" for key in inside} if inside else {name}
        for key, each in (inside or {}).items():
            assert each["description"], (name, key)
    assert keys == set(keys_of(Recipe))
    methods = {each["title"]: each for each in schema["properties"]["method"]["oneOf"]}
    assert methods.keys() == set(method_names())
    for name, of_method in methods.items():
        assert of_method["properties"].keys() == set(setting_names(name)) and of_method["description"]
        assert all(each["description"] for each in of_method["properties"].values())
