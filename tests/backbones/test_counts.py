"""Trainable and frozen parameters of the published shapes, against the published counts (facts of arXiv 2405.05615)."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from dsmemvp.backbones.shapes import LANGUAGE, language_config
from dsmemvp.backbones.weights import configs_of_shapes
from dsmemvp.cli.main import main
from dsmemvp.config.reading import read_recipe
from dsmemvp.model import count

RECIPES = Path(__file__).parent.parent.parent / "recipes"


@pytest.mark.parametrize(
    ("name", "trainable", "frozen"),
    [("scienceqa-7b", 3_846_272, 6_738_415_616), ("scienceqa-13b", 5_452_928, 13_015_864_320)],
)
def test_the_recipes_have_the_published_numbers_of_parameters(name, trainable, frozen):
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    assert count(recipe, configs_of_shapes(recipe)) == (trainable, frozen)


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        # as the model cards and Hugging Face's index files (total_size / 2) of these models say
        ("llama-7b", 6_738_415_616),
        ("llama-13b", 13_015_864_320),
        ("llama-30b", 32_528_943_616),
        ("llama-65b", 65_285_660_672),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
    ],
)
def test_the_named_shapes_have_the_published_numbers_of_parameters(shape, parameters, capsys):
    given = [str(RECIPES / "scienceqa-7b.yaml"), f"model.language_shape={shape}", "model.language_model="]
    assert main(["count", *given]) == 0
    assert f"\n{parameters:,} frozen parameters in the language model" in capsys.readouterr().out


@pytest.mark.parametrize("shape", LANGUAGE)
def test_every_named_shape_has_as_many_parameters_as_transformers_makes(shape):
    recipe = read_recipe(RECIPES / "scienceqa-7b.yaml", [f"model.language_shape={shape}"])
    with torch.device("meta"):
        theirs = LlamaForCausalLM(language_config(shape))
    assert count(recipe, configs_of_shapes(recipe))[1] == sum(p.numel() for p in theirs.parameters())
