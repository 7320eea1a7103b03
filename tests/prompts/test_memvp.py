"""MemVP's branch against its formula in float64, and how its memory's gradient is summed."""

from dataclasses import replace

import pytest
import torch

from dsmemvp.data.batch import Item
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.dropout import Dropout
from dsmemvp.errors import UserError
from dsmemvp.prompts import Sizes
from dsmemvp.prompts.interface import Site
from dsmemvp.prompts.memvp import Method, Settings
from dsmemvp.prompts.memvp.branch import LayerMemory, hand_out, memory_branch

SITE = Site("decoder", 0)
LAMBDA, S, SLOTS, PATCHES, WIDTH = 0.3, 0.7, 7, 5, 12


def _new(sizes, hidden: int, slots: int, visual: float, output: float, dropout: float, scores="joint") -> Method:
    settings = Settings(
        hidden=hidden, slots=slots, visual_scale=visual, output_scale=output, dropout=dropout, scores=scores
    )
    return Method.build(settings, sizes)


def _method() -> Method:
    torch.manual_seed(0)
    method = _new(Sizes(PATCHES, 6, WIDTH, 2, 2), 4, SLOTS, LAMBDA, S, 0.0)
    torch.nn.init.normal_(method.value_positions)
    torch.nn.init.normal_(method.key_positions)
    return method


def _batch(images: list[bool]):
    items = [
        Item(i, EncodedText([1, 2, 3, 4], 1, False), torch.full((3, 8, 8), i, dtype=torch.uint8) if image else None)
        for i, image in enumerate(images)
    ]
    return make_batch(items, resolution=8).batch


def test_the_branch_is_the_published_formula():
    """Fact sheet 1.3: K = pad(g * lambda * f(z)) + p_k, V likewise, out = s * silu(x K^T) V; written out per sample in
    float64."""
    method, batch = _method(), _batch([True, False, True])
    features, x = torch.randn(2, PATCHES, 6), torch.randn(1, 12, WIDTH)
    state = method(features, batch)
    found = method.mlp(SITE, x, state, batch)

    f = method.projector
    hidden = features.double() @ f.fc1.weight.double().T + f.fc1.bias.double()
    projected = (hidden * torch.sigmoid(hidden)) @ f.fc2.weight.double().T + f.fc2.bias.double()
    for sample, image in enumerate([0, None, 1]):
        memory = torch.zeros(SLOTS, WIDTH, dtype=torch.float64)
        if image is not None:
            memory[:PATCHES] = LAMBDA * projected[image]
        key, value = memory + method.key_positions.double(), memory + method.value_positions.double()
        own = slice(4 * sample, 4 * sample + 4)
        score = x[0, own].double() @ key.T
        expected = S * (score * torch.sigmoid(score)) @ value
        torch.testing.assert_close(found[0, own].double(), expected, atol=1e-5, rtol=1e-5)


def _separable(x_Ld, key_Nd, value_Nd):
    """(silu(x) silu(K)^T) V without each token's lowest tenth of scores, written out."""
    score = (x_Ld * torch.sigmoid(x_Ld)) @ (key_Nd * torch.sigmoid(key_Nd)).T
    lowest = score.argsort(dim=-1)[:, : score.shape[-1] // 10]
    return score.scatter(1, lowest, 0.0) @ value_Nd


def test_separable_scores_are_their_formula():
    """ADEM-VL, fact sheet 6; K and V as without them. In float64, with 2 of 25 scores dropped."""
    torch.manual_seed(0)
    method = _new(Sizes(PATCHES, 6, WIDTH, 2, 2), 4, 25, LAMBDA, S, 0.0, "separable")
    for positions in (method.key_positions, method.value_positions):
        torch.nn.init.normal_(positions)
    batch, features, x = _batch([True, False]), torch.randn(1, PATCHES, 6), torch.randn(1, 8, WIDTH)
    state = method(features, batch)
    found = method.mlp(SITE, x, state, batch)
    for sample, image in enumerate((True, False)):
        memory = torch.zeros(25, WIDTH, dtype=torch.float64)
        memory[:PATCHES] = LAMBDA * image * method.projector(features)[0].double()
        own = slice(4 * sample, 4 * sample + 4)
        key, value = memory + method.key_positions.double(), memory + method.value_positions.double()
        expected = S * _separable(x[0, own].double(), key, value)
        torch.testing.assert_close(found[0, own].double(), expected, atol=1e-5, rtol=1e-5)
        # what a probe is told, and decoding goes on with
        told = method.memory(method.decoding(state, batch))
        active = told.active(x[0, own], told.key[sample]).double()
        torch.testing.assert_close(S * active @ value, expected, atol=1e-5, rtol=1e-5)
        assert (active == 0).sum(-1).tolist() == [2] * 4


def test_separable_scores_have_no_dropout():
    with pytest.raises(ValueError, match=r"set method.dropout=0"):
        Settings(scores="separable", dropout=0.1)


def test_a_text_only_sample_starts_from_the_unchanged_model():
    method = _new(Sizes(PATCHES, 6, WIDTH, 2, 2), 4, SLOTS, LAMBDA, S, 0.0)
    batch = _batch([False])
    out = method.mlp(SITE, torch.randn(1, 4, WIDTH), method(torch.randn(1, PATCHES, 6), batch), batch)
    assert out.count_nonzero() == 0


def test_initial_values_are_the_published_ones():
    method = _new(Sizes(256, 1024, 512, 2, 2), 128, 320, 0.01, 0.1, 0.1)
    assert method.value_positions.count_nonzero() == 0
    assert abs(method.key_positions.std().item() - 0.02) < 5e-4
    fc1 = method.projector.fc1
    assert fc1.bias.count_nonzero() == 0
    bound = (6 / (1024 + 128)) ** 0.5  # Xavier, uniform
    assert 0.99 * bound < fc1.weight.abs().max().item() <= bound


def test_the_memorys_gradient_is_summed_over_layers_in_float32():
    """40 bfloat16 layers: the sum of their gradients must be better than a sum kept in bfloat16."""
    torch.manual_seed(0)
    method, batch = _method(), _batch([True])
    state = method(torch.randn(1, PATCHES, 6).bfloat16().float(), batch)
    key, value = (state[name].detach().clone().requires_grad_() for name in ("key", "value"))
    key16, value16 = key.detach().bfloat16(), value.detach().bfloat16()
    inputs = [torch.randn(1, 4, WIDTH).bfloat16() for _ in range(40)]
    per_layer = []
    for x in inputs:
        k, v = key16.clone().requires_grad_(), value16.clone().requires_grad_()
        active = torch.nn.functional.silu(x @ k.transpose(1, 2))
        (S * (active @ v)).sum().backward()
        per_layer.append(v.grad)
    exact = torch.stack([g.double() for g in per_layer]).sum(0)
    in_bf16 = torch.zeros_like(per_layer[0])
    for g in per_layer:
        in_bf16 += g

    sums = {"key_gradient": torch.zeros_like(key), "value_gradient": torch.zeros_like(value)}
    token = hand_out(key, value, tuple(sums.values()))
    state = {"key": key16, "value": value16, "token": token, **sums}
    sum(method.mlp(Site("decoder", i), x, state, batch).sum() for i, x in enumerate(inputs)).backward()
    assert value.grad.dtype == torch.float32
    error = (value.grad.double() - exact).norm()
    assert error < 1e-5 * exact.norm() < (in_bf16.double() - exact).norm()


def test_dropout_acts_on_slots_in_training_only():
    method = _new(Sizes(PATCHES, 6, WIDTH, 2, 2), 4, SLOTS, LAMBDA, S, 0.5)
    torch.nn.init.ones_(method.value_positions)
    batch = _batch([True])
    state = method(torch.randn(1, PATCHES, 6), batch)
    x = torch.randn(1, 4, WIDTH)
    plain = method.eval().mlp(SITE, x, state, batch)
    method.train()
    other_step, other_sample = replace(batch, dropout_seed=1), replace(batch, sample_ids=batch.sample_ids + 1)
    other_place = Site("decoder", SITE.block + 1)
    found = [method.mlp(SITE, x, state, each) for each in (batch, other_step, other_sample)]
    found += [method.mlp(other_place, x, state, batch), plain]
    assert torch.equal(method.mlp(SITE, x, state, batch), found[0])
    assert len({tuple(each.flatten().tolist()) for each in found}) == len(found)


def test_too_few_slots_for_the_image_tokens_are_refused():
    with pytest.raises(UserError, match=r"method.slots: 4 slots cannot hold the 5 image tokens"):
        _new(Sizes(PATCHES, 6, WIDTH, 2, 2), 4, 4, LAMBDA, S, 0.0)


def test_the_branchs_own_gradients_are_autograds():
    """Of groups of 3, 0 and 2 tokens, with dropout, in float64."""
    torch.manual_seed(1)
    sizes, p = [3, 0, 2], 0.4
    x, key, value = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((1, 5, WIDTH), (3, 6, WIDTH), (3, 6, WIDTH))
    )
    given = [t.requires_grad_() for t in (x, key, value)]
    dropout, weights = Dropout(torch.arange(5)), torch.randn(1, 5, WIDTH, dtype=torch.float64)
    parts = [
        dropout_of(torch.nn.functional.silu(part @ k.T), p) @ v
        for part, k, v, dropout_of in zip(
            x[0].split(sizes), key, value, map(Dropout, dropout.keys.split(sizes)), strict=True
        )
    ]
    plain = torch.autograd.grad((S * torch.cat(parts)[None] * weights).sum(), given)
    sums = torch.zeros_like(key), torch.zeros_like(value)
    token = hand_out(key, value, sums)
    out = memory_branch(x, LayerMemory(key.detach(), value.detach(), sizes, S, token, sums), dropout, p)
    for found, exact in zip(torch.autograd.grad((out * weights).sum(), given), plain, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-12)


def test_the_gradients_of_separable_scores_are_autograds():
    """Of groups of 3, 0 and 2 tokens, in float64, and through silu(K), which is taken once."""
    torch.manual_seed(1)
    sizes = [3, 0, 2]
    given = [torch.randn(*shape, dtype=torch.float64) for shape in ((1, 5, WIDTH), (3, 20, WIDTH), (3, 20, WIDTH))]
    x, key, value = (t.requires_grad_() for t in given)
    weights = torch.randn(1, 5, WIDTH, dtype=torch.float64)
    parts = [_separable(*of_group) for of_group in zip(x[0].split(sizes), key, value, strict=True)]
    plain = torch.autograd.grad((S * torch.cat(parts)[None] * weights).sum(), given)
    low, sums = torch.nn.functional.silu(key), (torch.zeros_like(key), torch.zeros_like(value))
    token = hand_out(low, value, sums)
    memory = LayerMemory(low.detach(), value.detach(), sizes, S, token, sums, separable=True)
    out = memory_branch(x, memory, None, 0.0)
    for found, exact in zip(torch.autograd.grad((out * weights).sum(), given), plain, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-12)
