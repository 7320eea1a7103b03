"""Settings for DeepSpeed: what is filled in, what is refused, and that DeepSpeed takes the shipped ones."""

import json
from pathlib import Path

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from dsmemvp.config.recipe import Recipe
from dsmemvp.errors import UserError
from dsmemvp.planning.deepspeed_settings import deepspeed_settings, partitioned

CONFIGS = Path(__file__).parent.parent.parent / "ds_configs"
ZERO3 = CONFIGS / "zero3.json"


def _recipe(**training) -> Recipe:
    recipe = Recipe(name="x")
    recipe.training.deepspeed = str(ZERO3)
    for key, value in training.items():
        setattr(recipe.training, key, value)
    return recipe


def test_auto_is_filled_from_the_recipe():
    settings = deepspeed_settings(_recipe(global_batch=32, micro_batch=4, gradient_clipping=1.5), world=2)
    assert settings["train_micro_batch_size_per_gpu"] == 4
    assert (settings["train_batch_size"], settings["gradient_accumulation_steps"]) == (8, 1)  # the loop accumulates
    assert settings["gradient_clipping"] == 1.5
    assert settings["bf16"] == {"enabled": True}


def test_any_number_of_ranks_up_to_one_per_sample_shares_a_global_batch():
    steps = {ranks: _recipe(global_batch=32, micro_batch=4).training.micro_steps(ranks) for ranks in (1, 2, 3, 8, 32)}
    assert steps == {1: 8, 2: 4, 3: 3, 8: 1, 32: 1}
    with pytest.raises(UserError, match=r"training\.global_batch: 32 samples cannot be shared by 33 ranks; take fewer"):
        deepspeed_settings(_recipe(), world=33)


def test_the_batch_in_a_configuration_is_compared_with_the_recipe_s(tmp_path):
    path = tmp_path / "own.json"
    own = {"train_batch_size": 32, "gradient_accumulation_steps": 4}
    path.write_text(json.dumps(json.loads(ZERO3.read_text()) | own))
    settings = deepspeed_settings(_recipe(deepspeed=str(path)), world=2)
    assert (settings["train_batch_size"], settings["gradient_accumulation_steps"]) == (8, 1)
    with pytest.raises(UserError, match=r"sets gradient_accumulation_steps to 4, the recipe decides 8; write auto"):
        deepspeed_settings(_recipe(deepspeed=str(path)), world=1)


def test_a_configuration_that_contradicts_the_recipe_is_refused(tmp_path):
    settings = json.loads(ZERO3.read_text()) | {"train_batch_size": 64}
    (tmp_path / "other.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"sets train_batch_size to 64, the recipe decides 32"):
        deepspeed_settings(_recipe(deepspeed=str(tmp_path / "other.json")), world=1)


def test_another_stage_is_refused_before_anything_is_loaded(tmp_path):
    settings = json.loads(ZERO3.read_text())
    settings["zero_optimization"]["stage"] = 0
    (tmp_path / "none.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"none\.json: zero_optimization\.stage must be 1, 2 or 3"):
        deepspeed_settings(_recipe(deepspeed=str(tmp_path / "none.json")), world=1)


def test_missing_and_unreadable_configurations_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"training\.deepspeed"):
        deepspeed_settings(_recipe(deepspeed="nowhere.json"), world=1)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        deepspeed_settings(_recipe(deepspeed=str(tmp_path / "bad.json")), world=1)
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(UserError, match="has no zero_optimization"):
        deepspeed_settings(_recipe(deepspeed=str(tmp_path / "other.json")), world=1)


def test_hpz_cuts_inside_a_node_and_wants_nodes_of_one_size(monkeypatch):
    recipe = _recipe(deepspeed=str(CONFIGS / "zero3_hpz.json"), global_batch=48, micro_batch=1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert deepspeed_settings(recipe, world=8)["zero_optimization"]["zero_hpz_partition_size"] == 4
    with pytest.raises(UserError, match=r"zero_hpz_partition_size 4 does not divide 6 ranks"):
        deepspeed_settings(recipe, world=6)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert deepspeed_settings(recipe, world=2)["zero_optimization"]["zero_hpz_partition_size"] == 2


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_every_shipped_configuration_loads_into_deepspeed_and_is_explained(path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    settings = deepspeed_settings(_recipe(deepspeed=str(path), micro_batch=4, gradient_clipping=1.5), world=1)
    found = DeepSpeedConfig(settings)
    assert (found.train_batch_size, found.gradient_accumulation_steps, found.gradient_clipping) == (4, 1, 1.5)
    assert found.bfloat16_config.enabled and found.zero_enabled
    zero = found.zero_config
    assert zero.stage == (1 if path.stem == "replicated" else 3)
    assert (zero.offload_param is not None) == (path.stem == "zero3_offload")
    assert partitioned(settings) == (zero.stage == 3)
    unknown = settings["zero_optimization"].keys() - type(zero).model_fields.keys()
    aliases = {field.alias for field in type(zero).model_fields.values()}
    assert unknown <= aliases
    assert f"| `{path.name}` |" in (CONFIGS / "README.md").read_text(encoding="utf-8")
