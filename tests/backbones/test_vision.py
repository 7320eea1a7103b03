"""The vision towers' features against transformers' own models, bit for bit."""

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.recompute import run_again
from dsmemvp.backbones.vision import VisionTower
from dsmemvp.config.recipe import Vision
from dsmemvp.data.images import STATISTICS
from dsmemvp.errors import UserError

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
CASES = {
    "clip": (CLIPVisionConfig, CLIPVisionModel, {"intermediate_size": 64}),
    "siglip": (SiglipVisionConfig, SiglipVisionModel, {"intermediate_size": 64}),
    "dinov2": (Dinov2Config, Dinov2Model, {"layerscale_value": 0.3}),
    "dinov2, swiglu": (Dinov2Config, Dinov2Model, {"use_swiglu_ffn": True}),
    "dinov2, registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel, {"num_register_tokens": 3}),
}
STATED = {"clip": "imagenet", "siglip": "half", "dinov2": "imagenet"}


def _pair(case: str):
    config, theirs, more = CASES[case]
    torch.manual_seed(0)
    stock = theirs(config(**SIZES | more, attn_implementation="sdpa")).eval()
    with torch.no_grad():
        for p in stock.parameters():  # away from the initial zeros and ones
            p.add_(torch.randn_like(p) * 0.05)
    ours = VisionTower(config(**SIZES | more)).eval()
    weights = {_our_name(name): t for name, t in stock.state_dict().items()}
    unused = [name for name in weights if name not in ours.state_dict()]
    assert all(name.startswith(("layers.2.", "head.", "embeddings.mask_token")) for name in unused)
    assert ("layers.2.mlp.fc1.weight" in unused) == (case == "clip")
    ours.load_state_dict({name: t for name, t in weights.items() if name not in unused})
    return ours, stock


def _our_name(name: str) -> str:
    return name.removeprefix("vision_model.").replace("encoder.layers.", "layers.").replace("encoder.layer.", "layers.")


def _features(tower, images, recompute=False, branch=None):
    hidden = tower.start(images)
    for block in tower.layers:
        given = (hidden, *([branch] if branch else []))
        hidden = run_again(block, *given) if recompute else block(*given)
    return tower.finish(hidden)


def _stock_features(case: str, stock, pixels):
    interpolating = {} if "dinov2" in case else {"interpolate_pos_encoding": True}
    if case == "clip":
        out = stock(pixels, output_hidden_states=True, **interpolating)
        return getattr(stock, "vision_model", stock).post_layernorm(out.hidden_states[-2][:, 1:])
    dropped = {"siglip": 0, "dinov2": 1, "dinov2, swiglu": 1, "dinov2, registers": 4}[case]
    return stock(pixels, **interpolating).last_hidden_state[:, dropped:]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("side", [32, 48, 16])
def test_features_are_transformers_bit_for_bit(case, side):
    """At the tower's own resolution, at a larger and at a smaller one."""
    ours, stock = _pair(case)
    pixels = torch.randn(2, 3, side, side)
    with torch.no_grad():
        mine = _features(ours, pixels)
        assert torch.equal(mine, _stock_features(case, stock, pixels))
    tokens = Configs(None, ours.config, 0 if side == 32 else side).image_tokens
    assert mine.shape == (2, tokens, 32) == (2, (side // 8) ** 2, 32)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_transformers_bit_for_bit(case, recompute):
    ours, stock = _pair(case)
    pixels = torch.randn(2, 3, 48, 48)
    _features(ours, pixels, recompute).square().sum().backward()
    _stock_features(case, stock, pixels).square().sum().backward()
    theirs = {_our_name(name): p.grad for name, p in stock.named_parameters()}
    mine = {name: p.grad for name, p in ours.named_parameters()}
    assert len(mine) > 20
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


@pytest.mark.parametrize("case", CASES)
def test_fresh_adapters_change_nothing_and_trained_ones_do(case):
    ours, _ = _pair(case)
    pixels = torch.randn(1, 3, 32, 32)
    before = _features(ours, pixels)
    ours.add_adapters(Vision(adapter_dim=6), range(ours.depth))
    assert torch.equal(_features(ours.eval(), pixels), before)
    names = {name for name, _ in ours.named_parameters() if "adapter" in name}
    assert names == {
        f"layers.{n}.adapter.{part}.weight" for n in range(2 if case == "clip" else 3) for part in ("down", "up")
    }
    torch.nn.init.normal_(ours.layers[1].adapter.up.weight)
    assert not torch.allclose(_features(ours, pixels), before)


@pytest.mark.parametrize("case", CASES)
def test_a_methods_branch_reads_the_feed_forwards_input_and_is_added_to_its_output(case):
    ours, _ = _pair(case)
    hidden, seen = ours.start(torch.randn(1, 3, 32, 32)), []

    def branch(x):
        seen.append(x)
        return torch.ones_like(x)

    block = ours.layers[0]
    torch.testing.assert_close(block(hidden, branch), block(hidden) + 1)
    (x,) = seen
    norm = getattr(block, ours.family.norms[1])
    scaled = getattr(block, ours.family.scales[1]) if ours.family.scales else torch.nn.Identity()
    before = block(hidden) - scaled(block.mlp(x))
    torch.testing.assert_close(norm(before), x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_bytes_are_normalised_by_the_familys_own_statistics(case):
    ours, _ = _pair(case)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, deviation = (torch.tensor(s).view(3, 1, 1) for s in STATISTICS[STATED[case.split(",")[0]]])
    expected = ours.start((images / 255 - mean) / deviation)
    torch.testing.assert_close(ours.start(images), expected)
    other = VisionTower(ours.config, "clip")
    other.load_state_dict(ours.state_dict())
    assert not torch.allclose(other.start(images), expected, atol=1e-3)


def test_a_resolution_that_patches_do_not_divide_is_refused():
    ours, _ = _pair("clip")
    with pytest.raises(UserError, match=r"^vision\.resolution: 30 is no multiple of .* patches of 8 pixels, as 32 is"):
        Configs(None, ours.config, 30).resolution  # noqa: B018
    assert Configs(None, ours.config, 40).resolution == 40 and Configs(None, ours.config).resolution == 32
