"""DVP against the recording of its authors' classes (dvp_reference.safetensors), and what no sample and no layer may
see."""

import re
from dataclasses import replace

import pytest
import small
import torch
from dvp_recording import Recording, walk

from dsmemvp.backbones.recompute import KEPT
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.cli.main import main
from dsmemvp.config.methods import method_settings
from dsmemvp.data.batch import Item
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.errors import UserError
from dsmemvp.generation.generate import Sampling, generate
from dsmemvp.model import VisualLanguageModel, loss_sum
from dsmemvp.prompts.parts.adapter import AdaptedLinear


@pytest.fixture
def recording(shared) -> Recording:
    return Recording(shared)


@pytest.mark.parametrize("more", [0, 2])
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_authors_numbers_packed(recording, layer, adapters, more):
    model = recording.model(layer, adapters)
    batch = recording.batch(model, more)
    recorded = f"out.{'adapter' if adapters else 'plain'}.K{layer}"
    ours = recording.names(adapters)
    for policy in ("none", *KEPT):
        model.set_recompute(policy)
        model.zero_grad()
        found = walk(recording, model, batch)
        asking = torch.tensor([0, len(found["classify"]) - 1])
        found["classify"] = found["classify"][asking]
        for name in ("query", "prompt", "classify"):
            torch.testing.assert_close(found[name], recording.tensors[f"{recorded}.{name}"], atol=1e-5, rtol=0)
        loss = found["classify"].square().mean()
        assert abs(loss.item() - recording.tensors[f"{recorded}.loss"].item()) < 1e-5
        loss.backward()
        named = dict(model.named_parameters())
        gradients = [name for name in recording.tensors if name.startswith(f"{recorded}.grad.")]
        assert len(gradients) == 8 + adapters
        for name in gradients:
            own, wanted = named[ours[name.removeprefix(f"{recorded}.grad.")]].grad, recording.tensors[name]
            assert (own - wanted).norm() < 1e-4 * wanted.norm() + 1e-8, (policy, name)


def test_an_adapter_is_the_authors(recording):
    linear = torch.nn.Linear(128, 128, bias=False)
    torch.nn.init.eye_(linear.weight)
    adapted = AdaptedLinear(linear, 2)
    for theirs, ours in (("down_sampler", adapted.adapter_down), ("up_sampler", adapted.adapter_up)):
        ours.weight.data = recording.tensors[f"w.adapters.0.{theirs}.weight"]
        ours.bias.data = recording.tensors[f"w.adapters.0.{theirs}.bias"]
    torch.testing.assert_close(adapted(recording.tensors["adapter.in"]), recording.tensors["adapter.out"])


COUNTS = {  # width of the vision tower -> golden numbers of dvp_reference.json
    "clip-vit-b-16": {"7b": 4_986_368, "13b": 6_035_968},
    "clip-vit-l-14": {"7b": 5_248_512, "13b": 6_298_112},
}
ADAPTERS, NORMS = {"7b": 33_820_672, "13b": 65_952_000}, {"7b": 266_240, "13b": 414_720}


@pytest.mark.parametrize("vision", COUNTS)
@pytest.mark.parametrize("size", ["7b", "13b"])
def test_trainable_parameters_are_the_authors(vision, size, repository, capsys):
    """With nothing but the method's name changed in the published recipe, and without vision adapters."""
    given = [str(repository / "recipes" / f"scienceqa-{size}.yaml"), "method.name=dvp", "vision.adapter_dim=0"]
    given.append(f"model.vision_shape={vision}")
    cross, adapters, norms = COUNTS[vision][size], ADAPTERS[size], NORMS[size]
    for more, wanted in (
        ((), cross),
        (("method.adapter_ratio=64",), cross + adapters),
        (("method.adapter_ratio=64", "method.train_norms=true"), cross + adapters + norms),
    ):
        assert main(["count", *given, *more]) == 0
        assert f"{wanted:,} trainable parameters" in capsys.readouterr().out


def _changed(model: VisualLanguageModel, texts, prompt: int):
    """The prompts that the cross-attention makes, with answers of these tokens behind the first `prompt` ones."""
    seen = []
    hook = model.method.attention.register_forward_hook(lambda module, given, out: seen.append(out[0]))
    items = [
        Item(i, EncodedText(t, prompt, False), p) for i, (t, p) in enumerate(zip(texts, small.pictures(2), strict=True))
    ]
    with torch.no_grad():
        model(make_batch(items, small.RESOLUTION, model.method.reserved()).batch)
    hook.remove()
    return seen[0]


VARIANTS = [{}, {"placement": "before_bos"}, {"query": "mean"}, {"query_norm": False}, {"prompts": 3}, {"layer": 0}]
VARIANTS += [{"layer": 2}, {"prompts": 2, "placement": "before_bos", "query": "mean"}]
VARIANTS += [{"feature_layer": -1, "class_token": True, "feature_norm": False}, {"feature_layer": -3}]


def _small(**settings) -> VisualLanguageModel:
    given = small.SETTINGS["dvp"]
    small.SETTINGS["dvp"] = given | settings
    try:
        return small.model("dvp")
    finally:
        small.SETTINGS["dvp"] = given


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_changing_the_answer_changes_no_prompt_and_the_question_does(settings):
    model = _small(**settings)
    first = _changed(model, [[1, 5, 9, 3, 7, 30], [1, 8, 4, 11, 2, 3]], 4)
    assert torch.equal(first, _changed(model, [[1, 5, 9, 3, 8, 8], [1, 8, 4, 11, 9, 9]], 4))
    other = _changed(model, [[1, 5, 9, 4, 7, 30], [1, 8, 4, 11, 2, 3]], 4)
    assert not torch.equal(first[0], other[0]) and torch.equal(first[1], other[1])


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_with_a_cache_the_tokens_are_those_without(settings):
    model = _small(**settings)
    wanted = small.without_cache(model, 8)
    assert generate(small.decoder(model), small.prompts(model), Sampling(max_new_tokens=8)) == wanted
    others = [small.pictures(9)[-1] if image else None for image in small.PICTURES]
    assert small.without_cache(model, 8, images=others) != wanted


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_every_trainable_takes_part_with_and_without_images(settings):
    model = _small(**settings)
    for images in ([False, False], [True, True], [True, False]):
        model.zero_grad(set_to_none=True)
        batch = small.prompts(model, small.TEXTS[:2], images).batch
        loss_sum(model(batch)[0], batch.targets).backward()
        assert [n for n, p in model.trainables().items() if p.grad is None] == []
        moved = [n for n, p in model.trainables().items() if n.startswith("method.") and p.grad.abs().max() > 0]
        # a key's bias moves all scores alike, which a softmax does not see
        assert len(moved) >= (7 if any(images) else 0) and (any(images) or not moved), moved


def test_layers_below_do_not_see_the_prompt_s_place():
    """Without a prompt in layer K what stands in the place would be an embedding of token 0: the answer must not depend
    on it."""
    model = _small(layer=2)
    batch = small.prompts(model).batch
    with torch.no_grad():
        first, _ = model(batch)
        batch.tokens[batch.places["prompt"]] = 9
        assert torch.equal(first, model(batch)[0])
        batch.tokens[2] = 9
        assert not torch.equal(first, model(batch)[0])


def test_dropout_takes_attention_weights_in_training_alone():
    model = _small(dropout=0.5)
    batch = small.prompts(model).batch
    with torch.no_grad():
        plain, _ = model(batch)
        assert torch.equal(plain, model(batch)[0])
        dropped, _ = model.train()(batch)
        assert torch.equal(dropped, model(batch)[0]) and not torch.equal(dropped, plain)
        assert not torch.equal(dropped, model(replace(batch, dropout_seed=5))[0])


def test_adapters_that_start_at_zero_change_nothing():
    recipe = small.recipe("dvp")
    recipe.method = method_settings("dvp", adapter_ratio=8, adapter_zero_init=True, layer=1)
    plain = small.recipe("dvp")
    plain.method = method_settings("dvp", layer=1)
    models = []
    for own in (recipe, plain):
        torch.manual_seed(0)
        model = build_frozen(own, small.configs())
        add_trainables(model, own, small.configs())
        models.append(model.eval())
    adapted, without = models
    without.language.load_state_dict(adapted.language.state_dict(), strict=False)
    without.vision.load_state_dict(adapted.vision.state_dict())
    without.method.load_state_dict(adapted.method.state_dict())
    batch = small.prompts(adapted).batch
    with torch.no_grad():
        assert torch.equal(adapted(batch)[0], without(batch)[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": 3}, "method.layer: there is no layer 3 in the language model, whose layers run from 0 to 2"),
        ({"adapter_ratio": 64}, "method.adapter_ratio: 64 leaves nothing of the language model's width of 32"),
        ({"feature_layer": -4}, "block -4 of the vision tower, counted from its last, is not there; it has 3"),
    ],
)
def test_what_does_not_fit_the_models_is_told(settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        _small(**settings)
