"""Every policy of gradient checkpointing against the plain block: gradients, what is computed again, what is kept."""

from functools import partial

import pytest
import small
import torch
from decoders import CASES, pair
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dsmemvp.backbones.attention import Packing
from dsmemvp.backbones.recompute import KEPT
from dsmemvp.dropout import Dropout, token_keys
from dsmemvp.model import loss_sum

POLICIES = tuple(KEPT)
LENGTHS = (5, 1, 7)
T, WIDTH, SLOTS = sum(LENGTHS), 32, 6


def _packing() -> Packing:
    return Packing(torch.tensor([0, *LENGTHS]).cumsum(0).int(), LENGTHS)


def _gradients(case: str, policy: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Of the packed hidden states and of one memory for two blocks, with dropout."""
    tower = pair(case, dtype)[0].language.requires_grad_(False)
    generator = torch.Generator().manual_seed(4)
    drawn = [
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((1, T, WIDTH), (SLOTS, WIDTH), (SLOTS, WIDTH))
    ]
    hidden, key, value = (t.to(dtype).requires_grad_() for t in drawn)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    dropout = Dropout(token_keys(torch.arange(3), LENGTHS, positions, seed=1))

    def branch(place, x):
        return dropout.at(place)(F.silu(x @ key.T), 0.4) @ value

    out = hidden
    for place in range(2):
        given = (tower.rotary(positions, dtype), _packing(), partial(branch, place), None, policy)
        out = tower.layers[place](out, *given)
    weights = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(dtype)
    return list(torch.autograd.grad((out * weights).sum(), [hidden, key, value]))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_gradients_are_those_of_the_plain_block(case, dtype, tolerance):
    plain = _gradients(case, "none", dtype)
    for policy in POLICIES if dtype == torch.float64 else ("full",):
        for found, own in zip(_gradients(case, policy, dtype), plain, strict=True):
            assert (found - own).norm() <= tolerance * own.norm() and own.norm() > 0, policy


def _train(model, policy):
    model.set_recompute(policy, "full" if policy == "full" else "none")
    model.train().zero_grad(set_to_none=True)
    batch = small.prompts(model).batch
    logits, _ = model(batch)
    loss = loss_sum(logits, batch.targets)
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    return loss.item(), {name: p.grad for name, p in model.trainables().items()}, counter.get_total_flops()


@pytest.mark.parametrize("method", ["memvp", "separable", "input_space", "dvp"])
def test_a_step_of_a_whole_model_is_the_same_under_every_policy(method):
    model = small.model(method)
    plain_loss, plain, plain_flops = _train(model, "none")
    loss, found, flops = _train(model, "elementwise")
    assert loss == plain_loss
    for name in plain:
        assert (found[name] - plain[name]).norm() <= 5e-5 * plain[name].norm() + 1e-6, name
    executed = {"none": plain_flops, "elementwise": flops}
    for policy in POLICIES:
        loss, other, executed[policy] = _train(model, policy)
        assert loss == plain_loss and all(torch.equal(other[name], found[name]) for name in found), policy
    # more is computed again the less is kept
    order = ("none", "elementwise", "qkv", "attention", "full")
    assert sorted(order, key=lambda policy: executed[policy]) == list(order)
    assert executed["elementwise"] < executed["mlp"] < executed["qkv+mlp"] < executed["full"]
