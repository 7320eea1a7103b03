"""Trainable and frozen parameters of the published shapes, against the published counts (facts of arXiv 2405.05615)."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from dsmemvp.models.joined import count
from dsmemvp.models.shapes import LANGUAGE, language_config
from dsmemvp.models.weights import configs_of_shapes
from dsmemvp.recipe_file import read_recipe

RECIPES = Path(__file__).parent.parent.parent / "recipes"


@pytest.mark.parametrize(
    ("name", "trainable", "frozen"),
    [("scienceqa-7b", 3_846_272, 6_738_415_616), ("scienceqa-13b", 5_452_928, 13_015_864_320)],
)
def test_the_recipes_have_the_published_numbers_of_parameters(name, trainable, frozen):
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    assert count(recipe, configs_of_shapes(recipe)) == (trainable, frozen)


@pytest.mark.parametrize("shape", LANGUAGE)
def test_every_named_shape_has_as_many_parameters_as_transformers_makes(shape):
    recipe = read_recipe(RECIPES / "scienceqa-7b.yaml", [f"model.language_shape={shape}"])
    with torch.device("meta"):
        theirs = LlamaForCausalLM(language_config(shape))
    assert count(recipe, configs_of_shapes(recipe))[1] == sum(p.numel() for p in theirs.parameters())
