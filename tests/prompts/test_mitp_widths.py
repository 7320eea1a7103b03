"""MITP with two encoders of different widths: prompts meet in a shared width, as the specification's formulas say."""

import pytest
import torch
from transformers import BertConfig, ViTConfig

from dsmemvp.backbones.configs import Configs
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.config.methods import method_settings
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import Item
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.errors import UserError
from dsmemvp.model import VisualLanguageModel, loss_sum

D, V, RANK, PROMPTS, CLASSES = 48, 32, 8, 3, 5
SIZES = {"num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}


def _model(blocks: int = 4, **settings) -> VisualLanguageModel:
    recipe = Recipe(name="x")
    given = {"classes": CLASSES, "prompt_len": PROMPTS, "prompt_std": 0.5, "rank": RANK}
    recipe.method = method_settings("mitp_encoders", **given | settings)
    recipe.vision.adapter_dim, recipe.data.max_length = 0, 32
    configs = Configs(
        BertConfig(**SIZES, hidden_size=D, vocab_size=40, max_position_embeddings=40),
        ViTConfig(**SIZES | {"num_hidden_layers": blocks}, hidden_size=V, image_size=16, patch_size=8),
    )
    torch.manual_seed(0)
    model = build_frozen(recipe, configs)
    add_trainables(model, recipe, configs)
    for name, parameter in model.method.named_parameters():
        if name.startswith("to_"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def _batch(model: VisualLanguageModel):
    pictures = torch.randint(256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    images = (pictures[0], None, pictures[1])
    items = [
        Item(i, EncodedText([1, 5 + i, 7, 2][: 3 + i % 2], 3 + i % 2, False), image, labels=(i,))
        for i, image in enumerate(images)
    ]
    return make_batch(items, 16, model.method.reserved(), labels=model.method.labels()).batch


def _rms(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def test_the_hub_and_the_first_prompts_are_the_formulas():
    method = _model().method
    w = {name: p.detach().double() for name, p in method.named_parameters()}

    def mapped(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    state = method.begin(_batch(_model()))
    first = mapped("first_vision", mapped("to_rank_text", _rms(w["text_prompt"])))
    torch.testing.assert_close(state["vision"][0].double(), first, atol=1e-5, rtol=1e-5)

    seen, text = torch.randn(3, PROMPTS, V), torch.randn(3, PROMPTS, D)
    found = method._meet(0, text, {"seen": seen, "has_image": torch.tensor([[True], [False], [True]])})
    e_v, e_t = mapped("to_rank_vision", _rms(seen.double())), mapped("to_rank_text", _rms(text.double()))
    lengths = e_v.norm(dim=-1)[:, :, None] * e_t.norm(dim=-1)[:, None]
    scores = e_v @ e_t.transpose(1, 2) / lengths / 0.1
    has_image = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)[:, None, None]

    def active(x: torch.Tensor) -> torch.Tensor:
        return x * 0.5 * (1 + torch.erf(x / 2**0.5))

    vision = seen + has_image * mapped("to_vision", active(scores.softmax(-1) @ e_t))
    words = text + has_image * mapped("to_text", active(scores.transpose(1, 2).softmax(-1) @ e_v))
    torch.testing.assert_close(found["vision"].double(), vision, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["text"].double(), words, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"hub": "off"}, {"hub": "uniform"}, {"direction": "text_to_vision"}], ids=str)
def test_every_trainable_has_a_gradient(settings):
    model = _model(**settings)
    batch = _batch(model)
    loss_sum(model(batch)[0], batch.targets).backward()
    assert [name for name, p in model.trainables().items() if p.grad is None] == []
    if not settings:
        sizes = {name.removeprefix("method."): tuple(p.shape) for name, p in model.trainables().items()}
        assert sizes["classifier.head.weight"] == (CLASSES, V + D) and sizes["first_vision.weight"] == (V, RANK)
        assert sizes["to_vision.weight"] == (V, RANK) and sizes["to_text.weight"] == (D, RANK)
        assert all(p.grad.abs().max() > 0 for p in model.trainables().values())


def test_towers_of_different_depths_are_refused():
    with pytest.raises(UserError, match="mitp_encoders needs towers of as many blocks, not of 3 and 4"):
        _model(blocks=3)
