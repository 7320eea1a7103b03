"""MemVP's branch against its formula in float64, and how its memory's gradient is summed."""

import pytest
import torch

from dsmemvp.data.batch import Item, make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.errors import UserError
from dsmemvp.prompts import Sizes
from dsmemvp.prompts.memvp import MemVP

LAMBDA, S, SLOTS, PATCHES, WIDTH = 0.3, 0.7, 7, 5, 12


def _method() -> MemVP:
    torch.manual_seed(0)
    method = MemVP(Sizes(PATCHES, 6, WIDTH), 4, SLOTS, visual_scale=LAMBDA, output_scale=S, dropout=0.0)
    torch.nn.init.normal_(method.value_positions)
    torch.nn.init.normal_(method.key_positions)
    return method


def _batch(images: list[bool]):
    items = [
        Item(i, EncodedText([1, 2, 3], 1, False), torch.zeros(3, 8, 8) if image else None)
        for i, image in enumerate(images)
    ]
    return make_batch(items, resolution=8)


def test_the_branch_is_the_published_formula():
    """Fact sheet 1.3: K = pad(g * lambda * f(z)) + p_k, V likewise, out = s * silu(x K^T) V; written out per sample in
    float64."""
    method, batch = _method(), _batch([True, False, True])
    features, x = torch.randn(2, PATCHES, 6), torch.randn(3, 4, WIDTH)
    state = method(features, batch)
    found = method.feed_forward(0, x, state)

    f = method.projector
    hidden = features.double() @ f.fc1.weight.double().T + f.fc1.bias.double()
    projected = (hidden * torch.sigmoid(hidden)) @ f.fc2.weight.double().T + f.fc2.bias.double()
    for sample, image in enumerate([0, None, 1]):
        memory = torch.zeros(SLOTS, WIDTH, dtype=torch.float64)
        if image is not None:
            memory[:PATCHES] = LAMBDA * projected[image]
        key, value = memory + method.key_positions.double(), memory + method.value_positions.double()
        score = x[sample].double() @ key.T
        expected = S * (score * torch.sigmoid(score)) @ value
        torch.testing.assert_close(found[sample].double(), expected, atol=1e-5, rtol=1e-5)


def test_a_text_only_sample_starts_from_the_unchanged_model():
    method = MemVP(Sizes(PATCHES, 6, WIDTH), 4, SLOTS, LAMBDA, S, dropout=0.0)
    out = method.feed_forward(0, torch.randn(1, 4, WIDTH), method(torch.randn(1, PATCHES, 6), _batch([False])))
    assert out.count_nonzero() == 0


def test_initial_values_are_the_published_ones():
    method = MemVP(Sizes(256, 1024, 512), 128, 320, 0.01, 0.1, 0.1)
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
    key, value, key16, value16 = method(torch.randn(1, PATCHES, 6).bfloat16().float(), batch)
    key, value = key.detach().requires_grad_(), value.detach().requires_grad_()
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

    sum(method.feed_forward(i, x, (key, value, key16, value16)).sum() for i, x in enumerate(inputs)).backward()
    assert value.grad.dtype == torch.float32
    error = (value.grad.double() - exact).norm()
    assert error < 1e-5 * exact.norm() < (in_bf16.double() - exact).norm()


def test_dropout_acts_on_slots_in_training_only():
    method = MemVP(Sizes(PATCHES, 6, WIDTH), 4, SLOTS, LAMBDA, S, dropout=0.5)
    torch.nn.init.ones_(method.value_positions)
    state = method(torch.randn(1, PATCHES, 6), _batch([True]))
    x = torch.randn(1, 4, WIDTH)
    method.train()
    assert not torch.equal(method.feed_forward(0, x, state), method.feed_forward(0, x, state))
    method.eval()
    assert torch.equal(method.feed_forward(0, x, state), method.feed_forward(0, x, state))


def test_too_few_slots_for_the_image_tokens_are_refused():
    with pytest.raises(UserError, match=r"method.slots: 4 slots cannot hold the 5 image tokens"):
        MemVP(Sizes(PATCHES, 6, WIDTH), 4, 4, LAMBDA, S, 0.0)
