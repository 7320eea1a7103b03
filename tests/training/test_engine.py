"""Settings for DeepSpeed, decay groups, and the watch over gradients; single process."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dsmemvp.recipe import Recipe
from dsmemvp.training.engine import decay_groups
from dsmemvp.training.sharding import deepspeed_settings
from dsmemvp.training.gradients import GradientWatch

ZERO3 = Path(__file__).parent.parent.parent / "ds_configs" / "zero3.json"


def _recipe(**training) -> Recipe:
    recipe = Recipe(name="x")
    recipe.training.deepspeed = str(ZERO3)
    for key, value in training.items():
        setattr(recipe.training, key, value)
    return recipe


def test_auto_is_filled_from_the_recipe():
    settings = deepspeed_settings(_recipe(global_batch=32, micro_batch=4, gradient_clipping=1.5), world=2)
    assert settings["train_batch_size"] == 32
    assert settings["train_micro_batch_size_per_gpu"] == 4
    assert settings["gradient_accumulation_steps"] == 4
    assert settings["gradient_clipping"] == 1.5
    assert settings["bf16"] == {"enabled": True}


def test_a_global_batch_that_the_ranks_cannot_share_is_refused():
    with pytest.raises(ValueError, match=r"training\.global_batch: 32 is not a multiple of .* 4 x 3 ranks"):
        deepspeed_settings(_recipe(), world=3)


def test_a_configuration_that_contradicts_the_recipe_is_refused(tmp_path):
    settings = json.loads(ZERO3.read_text()) | {"train_batch_size": 64}
    (tmp_path / "other.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"sets train_batch_size to 64, the recipe decides 32"):
        deepspeed_settings(_recipe(deepspeed=str(tmp_path / "other.json")), world=1)


def test_another_stage_is_refused_before_anything_is_loaded(tmp_path):
    settings = json.loads(ZERO3.read_text())
    settings["zero_optimization"]["stage"] = 2
    (tmp_path / "two.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"two\.json: only ZeRO stage 3 is supported"):
        deepspeed_settings(_recipe(deepspeed=str(tmp_path / "two.json")), world=1)


def test_missing_and_unreadable_configurations_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"training\.deepspeed"):
        deepspeed_settings(_recipe(deepspeed="nowhere.json"), world=1)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        deepspeed_settings(_recipe(deepspeed=str(tmp_path / "bad.json")), world=1)


def test_matrices_are_decayed_and_vectors_are_not():
    matrix, vector = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    assert decay_groups({"m": matrix, "v": vector}, 0.02) == [
        {"params": [matrix], "weight_decay": 0.02},
        {"params": [vector], "weight_decay": 0.0},
    ]
    assert len(decay_groups({"m": matrix}, 0.02)) == 1


class _OneRank:
    """Stands for the process group of a single process."""

    world = 1

    def sums(self, *numbers):
        return list(numbers)


def test_a_parameter_without_gradient_is_named():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    watch = GradientWatch({"used": used, "unused": unused})
    (used * 2).sum().backward()
    with pytest.raises(ValueError, match="no gradient reached unused;"):
        watch.check_all_received(_OneRank())


def test_a_gradient_of_zero_counts_as_received():
    parameter = nn.Parameter(torch.ones(2))
    watch = GradientWatch({"p": parameter})
    (parameter * 0).sum().backward()
    watch.check_all_received(_OneRank())
