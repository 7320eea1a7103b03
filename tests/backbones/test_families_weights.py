"""Folders of every family, as transformers writes them: loaded by byte ranges, they compute what transformers does."""

import json

import pytest
import torch
from decoders import CASES as DECODERS
from decoders import SIZES as DECODER_SIZES
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    MistralConfig,
    Qwen2Config,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from dsmemvp.backbones.weights import Base, read_configs
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.config.methods import method_settings
from dsmemvp.config.recipe import Recipe
from dsmemvp.errors import UserError

VISION_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
SIGLIP = VISION_SIZES | {"intermediate_size": 32}
TOWERS = {
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**VISION_SIZES | {"intermediate_size": 32})),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**SIGLIP)),
    "siglip, with its text tower": lambda: SiglipModel(
        SiglipConfig(
            text_config={"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
            | {"num_attention_heads": 2},
            vision_config=SIGLIP,
        )
    ),
    "dinov2": lambda: Dinov2Model(Dinov2Config(layerscale_value=0.5, **VISION_SIZES)),
    "dinov2, swiglu": lambda: Dinov2Model(Dinov2Config(use_swiglu_ffn=True, **VISION_SIZES)),
    "dinov2, registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VISION_SIZES)),
}


def _moved(model):
    """Away from the initial zeros and ones."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model.eval()


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    recipe = Recipe(name="x")
    recipe.model.language_model, recipe.model.vision_tower = str(tmp_path / "language"), str(tmp_path / "vision")
    torch.manual_seed(0)
    _language("llama").save_pretrained(tmp_path / "language")
    _moved(TOWERS["clip"]()).save_pretrained(tmp_path / "vision")
    return recipe


def _language(case: str):
    config, theirs, more = DECODERS[case]
    return _moved(theirs(config(**DECODER_SIZES | more)))


def _load(recipe: Recipe):
    model = build_frozen(recipe, read_configs(recipe))
    Base(recipe).load(model)
    return model.eval()


def _rewrite(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("case", [case for case in DECODERS if "window" not in case])
def test_every_decoders_folder_is_loaded(recipe, tmp_path, case):
    recipe.method.name = "none"
    theirs = _language(case)
    theirs.save_pretrained(tmp_path / "language", max_shard_size="20KB")
    (tmp_path / "language" / "model.safetensors").unlink()
    ours = _load(recipe).language.state_dict()
    stock = {name.removeprefix("model."): t for name, t in theirs.state_dict().items()}
    assert ours.keys() == stock.keys()
    assert [name for name in ours if not torch.equal(ours[name], stock[name])] == []
    assert any(name.endswith("q_proj.bias") for name in ours) == case.startswith("qwen2")
    assert any(name.endswith("q_norm.weight") for name in ours) == case.startswith("qwen3")


@pytest.mark.parametrize("prefix", ["", "vision_model."])
@pytest.mark.parametrize("case", TOWERS)
def test_every_towers_folder_is_loaded(recipe, tmp_path, case, prefix):
    stock = _moved(TOWERS[case]())
    stock.save_pretrained(tmp_path / "vision")
    stored = tmp_path / "vision" / "model.safetensors"
    if prefix and "dinov2" not in case and "text" not in case:  # as older versions write them
        save_file({prefix + name: t for name, t in load_file(stored).items()}, stored)
    ours = _load(recipe).vision
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        hidden = ours.start(pixels)
        for block in ours.layers:
            hidden = block(hidden)
        if case == "clip":
            expected = stock.post_layernorm(stock(pixels, output_hidden_states=True).hidden_states[-2][:, 1:])
        else:
            tower = getattr(stock, "vision_model", stock)
            dropped = {"siglip": 0, "dinov2": 1, "dinov2, swiglu": 1, "dinov2, registers": 5}.get(case, 0)
            expected = tower(pixels).last_hidden_state[:, dropped:]
        assert torch.equal(ours.finish(hidden), expected)


@pytest.mark.parametrize("case", ["siglip", "dinov2, swiglu"])
def test_left_over_and_missing_tensors_of_a_tower_are_listed(recipe, tmp_path, case):
    _moved(TOWERS[case]()).save_pretrained(tmp_path / "vision")
    stored = tmp_path / "vision" / "model.safetensors"
    tensors = load_file(stored)
    bias = next(name for name in tensors if name.endswith(("1.mlp.fc2.bias", "1.mlp.weights_in.bias")))
    tensors["extra.layers.9.weight"] = tensors.pop(bias)
    save_file(tensors, stored)
    named = "layers.1.mlp.fc2.bias" if case == "siglip" else "layers.1.mlp.gate_proj.bias, layers.1.mlp.up_proj.bias"
    with pytest.raises(UserError, match=rf"^model\.vision_tower: .* missing: {named}; left over: extra\.layers\.9"):
        _load(recipe)


def test_a_config_that_claims_a_model_many_times_as_large_is_refused(recipe, tmp_path):
    _moved(TOWERS["dinov2"]()).save_pretrained(tmp_path / "vision")
    _rewrite(tmp_path / "vision", hidden_size=16 * 500, num_attention_heads=2)
    model = build_frozen(recipe, read_configs(recipe))  # small enough to be built here
    with pytest.raises(UserError, match=r"which claims \d+ parameters; the files hold"):
        Base(recipe).load(model)


def test_texts_longer_than_an_active_sliding_window_are_refused(recipe, tmp_path):
    folder = tmp_path / "language"
    MistralConfig(**DECODER_SIZES, num_key_value_heads=2, sliding_window=100).save_pretrained(folder)
    recipe.data.max_length = 101
    with pytest.raises(UserError, match=r"^data\.max_length: 101 tokens are more than .* sliding window of 100,"):
        read_configs(recipe)
    recipe.data.max_length = 100
    configs = read_configs(recipe)
    recipe.method = method_settings("input_space", hidden=8)
    with pytest.raises(UserError, match=r"100 tokens and 4 places of the method are more than .* window of 100"):
        add_trainables(build_frozen(recipe, configs), recipe, configs)
    recipe.data.max_length = 96
    add_trainables(build_frozen(recipe, configs), recipe, configs)


@pytest.mark.parametrize(("first", "refused"), [(1, True), (3, False)])
def test_a_window_counts_if_a_layer_uses_it(recipe, tmp_path, first, refused):
    """Qwen's layers from `max_window_layers` on."""
    window = {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": first}
    Qwen2Config(**DECODER_SIZES, num_key_value_heads=2, **window).save_pretrained(tmp_path / "language")
    if refused:
        with pytest.raises(UserError, match=r"512 tokens are more than .* window of 100"):
            read_configs(recipe)
    else:
        read_configs(recipe)


def test_another_resolution_is_the_recipes(recipe):
    recipe.vision.resolution = 40
    configs = read_configs(recipe)
    assert (configs.resolution, configs.image_tokens) == (40, 25)
    recipe.vision.resolution = 44
    with pytest.raises(UserError, match=r"^vision\.resolution: 44 is no multiple"):
        read_configs(recipe)
    recipe.vision.resolution = 8 * 257
    with pytest.raises(UserError, match=r"66049 patches, at most 65536 are taken"):
        read_configs(recipe)
