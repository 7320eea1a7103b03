"""The vision tower against transformers' own CLIPVisionModel."""

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from dsmemvp.backbones.vision import VisionTower, image_tokens
from dsmemvp.config.recipe import Vision


def _tower() -> tuple[VisionTower, CLIPVisionModel]:
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8
    )
    torch.manual_seed(0)
    theirs = CLIPVisionModel(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():  # away from the initial zeros and ones
            p.add_(torch.randn_like(p) * 0.05)
    ours = VisionTower(config).eval()
    weights = {name.replace("encoder.layers", "layers"): t for name, t in theirs.state_dict().items()}
    weights = {name: t for name, t in weights.items() if not name.startswith("layers.3.")}
    ours.load_state_dict(weights)
    return ours, theirs


def test_features_are_the_penultimate_patch_tokens_after_the_final_norm():
    ours, theirs = _tower()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        penultimate = theirs(pixels, output_hidden_states=True).hidden_states[-2]
        expected = theirs.post_layernorm(penultimate[:, 1:])
        torch.testing.assert_close(ours(pixels), expected, atol=1e-5, rtol=1e-5)
    assert ours(pixels).shape == (2, image_tokens(ours.config), 32)


def test_fresh_adapters_change_nothing_and_trained_ones_do():
    ours, _ = _tower()
    pixels = torch.randn(1, 3, 32, 32)
    before = ours(pixels)
    ours.add_adapters(Vision(adapter_dim=6))
    assert torch.equal(ours.eval()(pixels), before)
    torch.nn.init.normal_(ours.layers[1].adapter.up.weight)
    assert not torch.allclose(ours(pixels), before)
