"""What a probe measures, against the formulas in float64 on the memory and inputs of the same forward."""

from dataclasses import replace

import pytest
import torch

from dsmemvp.backbones.weights import Base, read_configs
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.config.reading import read_recipe
from dsmemvp.data.collator import recipe_collator
from dsmemvp.data.manifest import read_manifest
from dsmemvp.data.packing import make_batch
from dsmemvp.data.sample import read_sample
from dsmemvp.data.stream import read_all
from dsmemvp.data.text import Tokenizer
from dsmemvp.errors import UserError
from dsmemvp.inspection.page import maps
from dsmemvp.inspection.probe import Memory, memory_of, probe
from dsmemvp.inspection.table import lines, memory_norms, shares
from dsmemvp.inspection.words import Word

PATCHES, SLOTS = 16, 24


@pytest.fixture(params=[("joint", False), ("separable", True)], ids=["joint", "separable, with class token"])
def tiny(request, recipe_path, demo_shards):
    """(model, batch of three samples, the second one without picture)"""
    scores, class_token = request.param
    words = [f"method.scores={scores}", f"method.class_token={class_token}", "method.dropout=0"]
    recipe = read_recipe(recipe_path, words)
    configs = read_configs(recipe)
    model = build_frozen(recipe, configs)
    Base(recipe).load(model)
    add_trainables(model, recipe, configs)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        torch.nn.init.normal_(model.method.value_positions)
        torch.nn.init.normal_(model.method.key_positions)
    collator = recipe_collator(recipe, configs.resolution, configs.language.vocab_size)
    samples = [read_sample(entry) for entry in read_all(read_manifest(demo_shards))][:3]
    tokenizer = Tokenizer(recipe.model.tokenizer)
    batch = make_batch([collator.item(tokenizer, sample) for sample in samples], configs.resolution).batch
    return model.eval(), batch


def _recorded(model, batch):
    """Memory in float64, and every layer's feed-forward input and output."""
    states, inputs, outputs = [], [], []
    hooks = [model.method.register_forward_hook(lambda module, given, out: states.append(out))]
    for layer in model.language.layers:
        hooks.append(layer.mlp.up_proj.register_forward_hook(lambda module, given, out: inputs.append(given[0])))
        # the block adds to it in place
        hooks.append(layer.mlp.down_proj.register_forward_hook(lambda module, given, out: outputs.append(out.clone())))
    everywhere = torch.arange(sum(batch.lengths))  # the last layer computes supervised tokens alone
    with torch.no_grad():
        model(replace(batch, supervised=everywhere, supervised_counts=batch.lengths))
    for hook in hooks:
        hook.remove()
    # each of the three samples is a group of its own
    cut = [[t[0].double().split(batch.lengths) for t in tensors] for tensors in (inputs, outputs)]
    return states[0]["key"].double(), states[0]["value"].double(), *cut


def _silu(score):
    return score / (1 + torch.exp(-score))


def _active(model, x_Ld, key_Nd):
    """`key` as layers read it, which with separable scores is silu(K)."""
    if not model.method.separable:
        return _silu(x_Ld @ key_Nd.T)
    score = _silu(x_Ld) @ key_Nd.T
    return score.scatter(-1, score.argsort(dim=-1)[..., : SLOTS // 10], 0.0)


def test_activation_contribution_change_and_norms_are_the_formulas(tiny):
    model, batch = tiny
    class_token = model.vision.features.class_token
    other = Memory(torch.randn(1, SLOTS, 32), torch.randn(1, SLOTS, 32))
    found = probe(model, model, batch, other)
    keys, values, inputs, outputs = _recorded(model, batch)
    scale, offsets = model.method.output_scale, batch.cu_seqlens.tolist()
    assert found.activation.shape == found.change.shape == (2, offsets[-1], SLOTS)
    assert found.visual == model.method.image_tokens == PATCHES + class_token
    word = Word("", (1,))
    torch.testing.assert_close(maps(found, word)[:-1], found.change[:, 1, class_token : class_token + PATCHES])
    for layer, (x, y) in enumerate(zip(inputs, outputs, strict=True)):
        for b in range(3):
            for n, token in enumerate(range(offsets[b], offsets[b + 1])):
                active = _active(model, x[b][n], keys[b])
                written = scale * active[:, None] * values[b]  # what each slot writes, [N, d]
                fires = _active(model, x[b][n], other.key[0].double())
                instead = scale * fires[:, None] * other.value[0].double()
                branch = written.sum(0)
                expected = (active, written @ branch, (written - instead).norm(dim=-1))
                got = (found.activation, found.contribution, found.change)
                for one, other_one in zip(got, expected, strict=True):
                    largest = other_one.abs().max().item()
                    torch.testing.assert_close(one[layer, token].double(), other_one, atol=1e-5 * largest, rtol=1e-3)
                assert found.branch_norm[layer, token].item() == pytest.approx(branch.norm().item(), rel=1e-4)
                assert found.feed_forward_norm[layer, token].item() == pytest.approx(y[b][n].norm().item(), rel=1e-4)
    torch.testing.assert_close(found.key_norm.double(), keys.norm(dim=-1))
    torch.testing.assert_close(found.value_norm.double(), values.norm(dim=-1))


def test_visual_and_learned_contributions_add_up_to_the_branchs_output(tiny):
    model, batch = tiny
    visual_slots = model.method.image_tokens
    found = probe(model, model, batch)
    torch.testing.assert_close(found.contribution.sum(-1), found.branch_norm**2, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.at([1, 4], "contribution", 2).sum(-1), torch.ones(2), rtol=1e-3, atol=1e-4)

    keys, values, inputs, _ = _recorded(model, batch)
    for layer, row in enumerate(shares(found, 0)):
        active = _active(model, inputs[layer][0], keys[0])
        visual, whole = active[:, :visual_slots] @ values[0, :visual_slots], active @ values[0]
        assert row.visual_output == pytest.approx(((visual * whole).sum() / (whole**2).sum()).item(), abs=1e-3)
        part = active[:, :visual_slots].abs().sum() / active.abs().sum()
        assert row.visual_activation == pytest.approx(part.item(), abs=1e-3)
    assert memory_norms(found)["learned_keys"] == pytest.approx(
        keys[0, visual_slots:].norm(dim=-1).mean().item(), rel=1e-4
    )
    assert (
        f"{visual_slots} visual and {SLOTS - visual_slots} learned slots" in lines(found)[0]
        and len(lines(found)) == 4 + 2
    )


def test_nothing_changes_against_the_same_memory_and_the_forward_is_as_without_a_probe(tiny):
    model, batch = tiny
    before = sum(len(module._forward_hooks) for module in model.modules())
    same = memory_of(model, model, batch)
    found = probe(model, model, batch, same)
    assert found.change.abs().max() == 0
    with torch.no_grad():
        torch.testing.assert_close(found.logits, model(batch)[0])
    after = sum(len(module._forward_hooks) for module in model.modules())
    assert before == after
    # the sample without picture has the learned positions alone
    positions = model.method.key_positions.detach()
    torch.testing.assert_close(same.key[1], _silu(positions) if model.method.separable else positions)
    assert not torch.equal(same.key[0], same.key[1])


def test_a_change_without_another_memory_is_refused(tiny):
    model, batch = tiny
    with pytest.raises(UserError, match="another memory"):
        probe(model, model, batch).at([0], "change")
