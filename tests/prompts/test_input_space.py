"""The input-space baseline: image tokens after BOS, LoRA, and the dummy row."""

import copy

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM

from dsmemvp.backbones.configs import Configs
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.config.methods import method_settings
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import Item
from dsmemvp.data.layout import Reserved
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText

PATCHES = 4
TEXTS = [[1, 5, 9, 3, 7], [1, 8, 4]]


def _model(adapters: int = 0):
    recipe = Recipe(name="x")
    recipe.method = method_settings("input_space", hidden=8, dropout=0.0)
    recipe.vision.adapter_dim = adapters
    sizes = {"intermediate_size": 32, "num_attention_heads": 2}
    configs = Configs(
        LlamaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, **sizes),
        CLIPVisionConfig(hidden_size=16, num_hidden_layers=3, image_size=16, patch_size=8, **sizes),
    )
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(copy.deepcopy(configs.language))
    model = build_frozen(recipe, configs)
    model.language.load_state_dict({n.removeprefix("model."): t for n, t in theirs.state_dict().items()})
    add_trainables(model, recipe, configs)
    return model.eval(), theirs.eval()


def _batch(images: list[bool]):
    torch.manual_seed(1)
    items = [
        Item(i, EncodedText(text, 1, False), torch.randint(256, (3, 16, 16)).to(torch.uint8) if image else None)
        for i, (text, image) in enumerate(zip(TEXTS, images, strict=True))
    ]
    return make_batch(items, 16, [Reserved("image", PATCHES)]).batch


def test_fresh_lora_leaves_a_text_only_sample_as_transformers_has_it():
    model, theirs = _model()
    with torch.no_grad():
        mine, _ = model(_batch([False, False]))
        stock = torch.cat([theirs(input_ids=torch.tensor([t])).logits[0, :-1] for t in TEXTS])
    torch.testing.assert_close(mine, stock, atol=1e-6, rtol=1e-5)


def test_image_tokens_stand_between_bos_and_the_question():
    model, theirs = _model()
    batch = _batch([False, True])
    with torch.no_grad():
        mine = model(batch)[0][len(TEXTS[0]) - 1 :]
        visual = model._walk(batch, {}, [s for s in model.schedule() if s.tower == "vision"])[1]["visual"]
        words = theirs.model.embed_tokens(torch.tensor([TEXTS[1]]))
        embedded = torch.cat([words[:, :1], visual, words[:, 1:]], dim=1)
        stock = theirs(inputs_embeds=embedded).logits[0]
    # the token after BOS is predicted after the image, the others after their predecessors
    torch.testing.assert_close(mine, stock[PATCHES:-1], atol=1e-6, rtol=1e-5)


def test_lora_adds_its_low_rank_product_with_scale_alpha_over_rank():
    model, _ = _model()
    linear = model.language.layers[0].self_attn.q_proj
    torch.nn.init.normal_(linear.lora_b.weight)
    x = torch.randn(3, 16)
    expected = x @ linear.weight.T + 16.0 / 8 * (x @ linear.lora_a.weight.T @ linear.lora_b.weight.T)
    torch.testing.assert_close(linear(x), expected)
    assert not linear.weight.requires_grad


def test_every_trainable_takes_part_with_and_without_images():
    model, _ = _model(adapters=4)
    for images in ([False, False], [True, True], [True, False]):
        model.zero_grad(set_to_none=True)
        model(_batch(images))[0].sum().backward()
        assert [n for n, p in model.trainables().items() if p.grad is None] == []
