"""What a sample is said to cost, against the products that torch counts when it is computed."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, Dinov2Config, LlamaConfig, SiglipVisionConfig

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.costs import cost_model
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.config.methods import method_settings
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import Item
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.model import VisualLanguageModel, loss_sum

LANGUAGE = {"vocab_size": 50, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
LANGUAGE |= {"num_attention_heads": 4}
VISION = {"hidden_size": 128, "num_hidden_layers": 12, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
TOWERS = {
    "clip": lambda: CLIPVisionConfig(**VISION, intermediate_size=512),
    "siglip": lambda: SiglipVisionConfig(**VISION, intermediate_size=512),
    "dinov2": lambda: Dinov2Config(**VISION),
}


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("adapters", [1, 0])
@pytest.mark.parametrize("side", [0, 48])
def test_an_image_costs_what_it_multiplies(tower, adapters, side):
    recipe = Recipe(name="x")
    recipe.method = method_settings("memvp", slots=64, hidden=1)
    recipe.vision.adapter_dim = adapters
    configs = Configs(LlamaConfig(**LANGUAGE), TOWERS[tower](), side)
    model = build_frozen(recipe, configs)
    add_trainables(model, recipe, configs)
    two, one = (_products(model, images, configs.resolution) for images in (2, 1))
    costs = cost_model(configs.language, configs.vision, True, configs.resolution, adapters > 0)
    width, inner, depth = LANGUAGE["hidden_size"], LANGUAGE["intermediate_size"], LANGUAGE["num_hidden_layers"]
    per_token = 2 * depth * (4 * width * width + 3 * width * inner)
    # not in the estimate: the patches' embedding, a narrow projector, what an adapter of width 1 does, and that nothing
    # before the first block's adapter is run backward; torch does not count attention's backward on CPUs
    assert costs.per_image == pytest.approx((two - one) / per_token, rel=0.12)


def _products(model: VisualLanguageModel, images: int, side: int) -> float:
    """Multiplications of a training step of two short samples, of which so many have an image."""
    pictures = [torch.zeros(3, side, side, dtype=torch.uint8) if i < images else None for i in range(2)]
    items = [Item(i, EncodedText([1] * 4, 3, False), picture) for i, picture in enumerate(pictures)]
    batch = make_batch(items, side).batch
    with FlopCounterMode(display=False) as counter:
        loss_sum(model(batch)[0], batch.targets).backward()
    return counter.get_total_flops() / 2
