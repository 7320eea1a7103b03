"""Configurations of the two models: those that no model can have, and what a tower does not do, each in one line."""

import json
import math

import pytest

from dsmemvp.backbones.weights import read_configs
from dsmemvp.config.recipe import Recipe
from dsmemvp.errors import UserError


def test_the_wrong_kind_of_model_is_refused(recipe, tmp_path):
    (tmp_path / "language" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="is a 'gpt2' model, not one of llama, mistral, qwen2, qwen3"):
        read_configs(recipe)


def test_a_folder_of_another_shape_than_the_recipe_names_is_refused(recipe):
    recipe.model.language_shape = "llama-7b"
    with pytest.raises(UserError, match=r"model\.language_shape: .* hidden_size 16 instead of 4096"):
        read_configs(recipe)


def test_an_unknown_shape_is_refused_with_the_nearest():
    recipe = Recipe(name="x")
    recipe.model.language_shape, recipe.model.vision_shape = "llama7b", "clip-vit-l-14"
    with pytest.raises(UserError, match=r"did you mean .llama-7b.\?"):
        read_configs(recipe)


def test_a_missing_folder_is_named(tmp_path):
    recipe = Recipe(name="x")
    recipe.model.language_model = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"model\.language_model: folder .*nowhere does not exist$"):
        read_configs(recipe)


@pytest.mark.parametrize(
    "changed",
    [
        *({"hidden_size": "abc"}, {"num_attention_heads": 0}, {"num_attention_heads": 5}, {"hidden_size": -16}),
        *(
            {"hidden_act": "foo"},
            {"rope_parameters": {"rope_type": "foo"}},
            {"rope_parameters": {"rope_type": "linear"}},
        ),
        *({"num_key_value_heads": 3}, {"vocab_size": 0}, {"num_hidden_layers": 0}, {"rms_norm_eps": "a"}),
        *({"rms_norm_eps": math.nan}, {"rms_norm_eps": -1.0}, {"attention_dropout": 5.0}),
        *({"rope_parameters": {"rope_type": "default", "rope_theta": theta}} for theta in (0.0, -1.0, math.nan)),
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 0.0}},
    ],
)
def test_a_configuration_that_no_model_can_have_is_told_in_one_line(recipe, tmp_path, changed):
    path = tmp_path / "language" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(UserError, match=r"^model\.language_model: .*config\.json is no usable configuration \(.+\)$"):
        read_configs(recipe)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
            "scaling of type 'dynamic'",
        ),
        ({"rope_parameters": {"rope_type": "su"}}, "rope_parameters of type 'su' is not supported; known: default, "),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised weights \(gptq\) are not read"),
        ({"hidden_act": "foo"}, "KeyError: 'foo'"),
    ],
)
def test_what_a_tower_does_not_do_is_named(recipe, tmp_path, capfd, changed, told):
    path = tmp_path / "language" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(UserError, match=told):
        read_configs(recipe)
    assert "transformers" not in capfd.readouterr().err  # its own warning would be a second line


def test_a_tower_that_is_not_square_and_a_configuration_that_is_none(recipe, tmp_path):
    path = tmp_path / "vision" / "config.json"
    content = json.loads(path.read_text())
    content["vision_config"]["image_size"] = [16, 16]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"^model\.vision_tower: .*a size of \[16, 16\]; only square images"):
        read_configs(recipe)
    path.write_text("[]")
    with pytest.raises(UserError, match=r"^model\.vision_tower: .*config\.json is a None model"):
        read_configs(recipe)
