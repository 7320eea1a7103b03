"""A method's settings are its own: found by the method's file, held alone, and dropped or refused elsewhere."""

import dataclasses
import sys

import pytest

from dsmemvp.config.methods import method_names, method_settings, setting_names
from dsmemvp.config.reading import as_dict, check_overrides, read_recipe, recipe_of
from dsmemvp.config.recipe import Recipe
from dsmemvp.errors import UserError

FORMER = {
    **{"name": "memvp", "hidden": 16, "slots": 24, "visual_scale": 0.1, "output_scale": 1.0, "dropout": 0.2},
    **{"lora_rank": 8, "lora_alpha": 16.0, "lora_targets": ["q_proj", "v_proj"]},
}
"""What `method` was in a checkpoint of format 5, whatever its name."""
OWN = {
    "memvp": {"hidden", "slots", "visual_scale", "output_scale", "dropout", "class_token", "scores"},
    "input_space": {"hidden", "dropout", "lora_rank", "lora_alpha", "lora_targets"},
    "mitp": {
        *("prompt_len", "prompt_std", "text_points", "vision_points", "rank", "tau", "sim", "activation", "carry"),
        *("hub", "vision", "cue"),
    },
    "dvp": {
        *("layer", "prompts", "placement", "query", "query_norm", "width", "heads", "dropout"),
        *("feature_layer", "class_token", "feature_norm", "adapter_ratio", "adapter_zero_init", "train_norms"),
        *("classes", "loss"),
    },
    "mitp_encoders": {
        *("classes", "loss", "rank", "prompt_len", "prompt_std", "points", "tau", "hub", "direction", "prompts"),
    },
    "none": set(),
}


@pytest.fixture
def read(tmp_path):
    """Reads a recipe given as text."""

    def read(text: str, *overrides: str, file: str = "r.yaml") -> Recipe:
        (tmp_path / file).write_text(f"name: r\n{text}", encoding="utf-8")
        return read_recipe(tmp_path / file, overrides)

    return read


def test_the_methods_are_the_files_of_their_package():
    assert {"memvp", "input_space", "none"} <= set(method_names())
    assert not {"interface", "parts", "__init__"} & set(method_names())


@pytest.mark.parametrize("name", OWN)
def test_a_recipe_holds_the_settings_of_its_method_alone(read, name):
    found = as_dict(read(f"method: {{name: {name}}}"))["method"]
    assert found.keys() == OWN[name] | {"name"} and found["name"] == name
    assert set(setting_names(name)) == found.keys()


def test_a_copy_is_made_as_of_any_dataclass(read):
    settings = read("method: {slots: 7}").method
    assert dataclasses.replace(settings, slots=9) == method_settings("memvp", slots=9)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("method: {name: memvp, lora_rank: 4}", ["'method.lora_rank'", "it belongs to input_space", "is memvp"]),
        ("method: {lora_rank: 4}", ["it belongs to input_space", "is memvp"]),
        ("method: {name: none, hidden: 4}", ["it belongs to input_space and memvp", "is none"]),
        ("method: {name: memvp, slot: 4}", ["unknown key 'method.slot'", "did you mean 'method.slots'?"]),
        ("method: {name: input_space, lora_ranks: 4}", ["did you mean 'method.lora_rank'?"]),
        ("method: {name: none, xyz: 4}", ["unknown key 'method.xyz'", "known of none: name"]),
        ("method: {name: memv}", ["method.name: must be one of", "memvp", "not 'memv'"]),
        ("method: {name: [memvp]}", ["method.name: must be one of", "not ['memvp']"]),
        ("method: {name: interface}", ["method.name: must be one of"]),
        ("method: {name: input_space, lora_targets: []}", ["method.lora_targets: name at least one linear layer"]),
        ("method: {name: input_space, lora_rank: 0}", ["method.lora_rank: must be at least 1 and at most 65,536"]),
        ("method: {name: input_space, lora_alpha: -1}", ["method.lora_alpha: must be at least 0 and at most 65,536"]),
        ("method: {name: input_space, lora_targets: [7]}", ["method.lora_targets: must be text, not 7"]),
        (
            "method: {name: input_space, lora_targets: [q_proj, x]}",
            ["must be of q_proj, k_proj", "not 'x'"],
        ),
        ("dropout: 0.1", ["unknown key 'dropout'", "did you mean 'method.dropout'?"]),
    ],
)
def test_a_key_of_another_method_and_a_typing_error_are_told_with_their_line(read, text, parts):
    with pytest.raises(UserError) as caught:
        read(text)
    message = str(caught.value)
    assert "r.yaml, line 2: " in message and "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("text", ["width: 15", "width: 16, heads: 3"])
def test_a_rule_between_keys_of_a_method_is_told_with_both(read, text):
    with pytest.raises(UserError, match=r"^method\.heads: \d+ do not divide method\.width = 1\d; take a multiple of"):
        read(f"method: {{name: dvp, {text}}}")


def test_an_override_that_chooses_another_method_leaves_out_what_that_one_has_not(read):
    found = read("method: {name: memvp, slots: 9, hidden: 5, dropout: 0.3}", "method.name=input_space").method
    assert found == method_settings("input_space", hidden=5, dropout=0.3)
    assert read("method: {slots: 9}", "method.name=none").method == method_settings("none")
    with pytest.raises(UserError, match=r"^override 'method\.slots=3': unknown key .* it belongs to memvp"):
        read("method: {name: memvp}", "method.name=input_space", "method.slots=3")
    with pytest.raises(UserError, match=r"line 2: unknown key 'method\.slot'"):
        read("method: {name: memvp, slot: 9}", "method.name=input_space")


@pytest.mark.parametrize("name", OWN)
def test_a_stored_recipe_of_all_methods_keys_is_read_by_those_of_its_method(name):
    recipe = recipe_of({"name": "x", "method": {**FORMER, "name": name}}, "checkpoint")
    wanted = {key: value for key, value in FORMER.items() if key in OWN[name]}
    assert recipe.method == method_settings(name, **{key: value for key, value in wanted.items() if key != "name"})


def test_a_stored_recipe_in_a_file_too(read, tmp_path):
    import json

    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"name": "x", "method": FORMER}))
    assert read_recipe(path).method.slots == 24
    assert read_recipe(path, ["method.name=none"]).method == method_settings("none")
    with pytest.raises(UserError, match="it belongs to input_space"):
        read_recipe(path, ["method.lora_rank=3"])


def test_what_no_method_ever_had_is_refused_in_a_stored_recipe_too():
    with pytest.raises(UserError, match=r"checkpoint: unknown key 'method\.gate'"):
        recipe_of({"name": "x", "method": {**FORMER, "gate": True}}, "checkpoint")


def test_overrides_of_a_method_are_left_to_who_knows_the_method():
    check_overrides(["method.slot=3"])
    with pytest.raises(UserError, match=r"unknown key 'methods\.slots'"):
        check_overrides(["methods.slots=3"])


NEW = """
from pydantic.dataclasses import dataclass

from dsmemvp.config.fields import CONFIG, Factor
from dsmemvp.config.methods import MethodSettings


@dataclass(config=CONFIG)
class Settings(MethodSettings):
    strength: Factor = 0.5
    \"\"\"How much.\"\"\"
"""


@pytest.mark.parametrize("file", ["toy.py", "toy/__init__.py"])
def test_a_new_method_is_one_new_file(read, tmp_path, monkeypatch, file):
    import dsmemvp.prompts

    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(NEW)
    dsmemvp.prompts.__path__.append(str(tmp_path))
    try:
        settings = read("method: {name: toy, strength: 9e-3}").method
        assert dataclasses.asdict(settings) == {"name": "toy", "strength": 0.009}
        with pytest.raises(UserError, match=r"method\.strength: must be at least 0 and at most 1,000, is -1"):
            read("method: {name: toy, strength: -1}")
        with pytest.raises(UserError, match=r"did you mean 'method\.strength'"):
            read("method: {name: toy, strenth: 1}")
    finally:
        dsmemvp.prompts.__path__.remove(str(tmp_path))
        sys.modules.pop("dsmemvp.prompts.toy", None)
