"""Trainable and frozen parameters of the published shapes, against the published counts (facts of arXiv 2405.05615)."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.shapes import LANGUAGE, VISION, language_config, vision_config
from dsmemvp.backbones.weights import configs_of_shapes
from dsmemvp.cli.main import main
from dsmemvp.config.reading import read_recipe
from dsmemvp.stages import count

RECIPES = Path(__file__).parent.parent.parent / "recipes"


@pytest.mark.parametrize(
    ("name", "trainable", "frozen"),
    [("scienceqa-7b", 3_846_272, 6_738_415_616), ("scienceqa-13b", 5_452_928, 13_015_864_320)],
)
def test_the_recipes_have_the_published_numbers_of_parameters(name, trainable, frozen):
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    assert count(recipe, configs_of_shapes(recipe)) == (trainable, frozen)


@pytest.mark.parametrize(
    ("name", "trainable"), [("food101", 1_930_085), ("mm_imdb", 1_810_199), ("snli_ve", 1_779_459)]
)
def test_mitp_with_two_encoders_has_the_specified_numbers_of_parameters(name, trainable, capsys):
    assert main(["count", str(RECIPES / f"{name}-mitp.yaml")]) == 0
    assert capsys.readouterr().out.startswith(f"{trainable:,} trainable parameters")


@pytest.mark.parametrize(("name", "trainable"), [("scienceqa-7b", 1_480_960), ("scienceqa-13b", 1_752_320)])
def test_mitp_has_the_specified_numbers_of_parameters_in_the_same_recipes(name, trainable, capsys):
    for given in ([f"{name}.yaml", "method.name=mitp", "vision.adapter_dim=0"], [f"{name}-mitp.yaml"]):
        assert main(["count", str(RECIPES / given[0]), *given[1:]]) == 0
        assert capsys.readouterr().out.startswith(f"{trainable:,} trainable parameters")


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
        ("mistral-7b", 7_248_023_552),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-8b", 8_190_735_360),
    ],
)
def test_the_named_shapes_have_the_published_numbers_of_parameters(shape, parameters, capsys):
    given = [str(RECIPES / "scienceqa-7b.yaml"), f"model.language_shape={shape}", "model.language_model="]
    assert main(["count", *given]) == 0
    assert f"\n{parameters:,} frozen parameters in the language model" in capsys.readouterr().out


@pytest.mark.parametrize("shape", [name for name in LANGUAGE if not name.startswith("bert")])
def test_every_named_shape_has_as_many_parameters_as_transformers_makes(shape):
    recipe = read_recipe(RECIPES / "scienceqa-7b.yaml", [f"model.language_shape={shape}"])
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(language_config(shape))
    assert count(recipe, configs_of_shapes(recipe))[1] == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(
    ("shape", "parameters", "image_tokens"),
    [
        # as the model cards say of the vision part: 93 M, 428 M and 304 M; openai/clip-vit-large-patch14's has 303 M
        ("clip-vit-b-16", 85_799_424, 196),
        ("siglip-b-16", 92_884_224, 196),
        ("siglip-so400m-14-384", 428_225_600, 729),
        ("dinov2-l-14", 304_368_640, 1369),
        ("clip-vit-l-14", 303_179_776, 256),
    ],
)
def test_the_named_towers_have_the_published_numbers_of_parameters(shape, parameters, image_tokens):
    with torch.device("meta"):
        theirs = AutoModel.from_config(vision_config(shape))
    assert sum(p.numel() for p in theirs.parameters()) == parameters
    assert Configs(None, vision_config(shape)).image_tokens == image_tokens


def test_bert_has_the_published_number_of_parameters_but_for_its_pooler():
    """110 M as its paper says; 109,482,240 in its files."""
    recipe = read_recipe(RECIPES / "food101-mitp.yaml")
    assert count(recipe, configs_of_shapes(recipe))[1] == 109_482_240 - 768 * 769


@pytest.mark.parametrize("shape", VISION)
def test_every_named_tower_can_be_counted(shape, capsys):
    slots = f"method.slots={Configs(None, vision_config(shape)).image_tokens}"
    given = [f"model.vision_shape={shape}", "model.language_shape=llama-tiny", "model.language_model="]
    assert main(["count", str(RECIPES / "scienceqa-7b.yaml"), *given, "model.vision_tower=", slots]) == 0
    assert "trainable parameters" in capsys.readouterr().out
