"""Packed attention against a float64 attention written out, and the key/value cache against no cache."""

from dataclasses import replace

import pytest
import torch
from decoders import CASES, batch_of, pair, random_texts

from dsmemvp.backbones import attention_products
from dsmemvp.backbones.attention import Packing, attend
from dsmemvp.backbones.key_value_cache import GROW, KeyValueCache
from dsmemvp.data.batch import Batch, Item
from dsmemvp.data.layout import Reserved
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.model import Decoding
from dsmemvp.prompts.interface import VisualPrompt

LENGTHS = (5, 1, 7)


def _packing(hidden=None) -> Packing:
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    return Packing(ends, LENGTHS, hidden=hidden)


def _by_hand(query, key, value, hidden, scale):
    """[T, heads, D]: one token of one sample and one head after another."""
    _, heads, tokens, _ = query.shape
    out = torch.zeros(tokens, heads, query.shape[-1], dtype=torch.float64)
    sample = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    for t in range(tokens):
        seen = [s for s in range(t + 1) if sample[s] == sample[t] and (s == t or not hidden[s])]
        for h in range(heads):
            group = h * key.shape[1] // heads
            weights = (key[0, group, seen] @ query[0, h, t] * scale).softmax(0)
            out[t, h] = weights @ value[0, group, seen]
    return out


@pytest.mark.parametrize("places", [(), (1, 2), (0, 4, 5, 8, 12)])
def test_each_token_reads_its_own_samples_earlier_places_that_are_not_hidden(places):
    torch.manual_seed(0)
    query = torch.randn(1, 4, sum(LENGTHS), 8, dtype=torch.float64)
    key, value = torch.randn(2, 1, 2, sum(LENGTHS), 8, dtype=torch.float64)
    hidden = torch.zeros(sum(LENGTHS), dtype=torch.bool)
    hidden[list(places)] = True
    packing = _packing(hidden if places else None)
    found, _ = attend(query, key, value, packing, 0.3)
    torch.testing.assert_close(found[0], _by_hand(query, key, value, hidden, 0.3), rtol=1e-12, atol=1e-12)


def _step(tokens: list[int], positions: list[int]) -> Batch:
    """One new token of every sample."""
    batch = batch_of([[token] for token in tokens])
    return replace(batch, positions=torch.tensor(positions))


@torch.no_grad()
def _decoded_both_ways(model, prompts: Batch, whole, steps: int) -> None:
    """Decode greedily with the cache; at every step the logits are those of `whole(tokens so far)`, [B, V]."""
    cache = KeyValueCache()
    logits, state = model(prompts, Decoding(cache))
    written: list[list[int]] = [[] for _ in prompts.lengths]
    for _ in range(steps):
        expected = whole(written)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(logits.argmax(-1), expected.argmax(-1))
        tokens = logits.argmax(-1).tolist()
        positions = [length + len(w) for length, w in zip(prompts.lengths, written, strict=True)]
        for w, token in zip(written, tokens, strict=True):
            w.append(token)
        logits, state = model(_step(tokens, positions), Decoding(cache, state))
    assert cache.lengths == [length + steps for length in prompts.lengths]


@pytest.mark.parametrize("case", CASES)
def test_decoding_with_the_cache_is_the_full_forward(case):
    model, stock = pair(case)
    texts = random_texts(9, 2, 5)
    batch = batch_of(texts)
    ends = batch.cu_seqlens[1:].long() - 1

    def whole(written):
        rows = [stock(input_ids=torch.tensor([t + w])).logits[0, -1] for t, w in zip(texts, written, strict=True)]
        return torch.stack(rows)

    _decoded_both_ways(
        model,
        replace(batch, supervised=ends, targets=torch.zeros(3, dtype=torch.long), supervised_counts=(1,) * 3),
        whole,
        4,
    )


@pytest.mark.parametrize("longest", [GROW - 2, GROW - 1, GROW])
def test_a_cache_grows_when_it_is_full(longest):
    model, stock = pair("llama")
    texts = random_texts(longest, 3)
    batch = batch_of(texts)
    ends = batch.cu_seqlens[1:].long() - 1

    def whole(written):
        rows = [stock(input_ids=torch.tensor([t + w])).logits[0, -1] for t, w in zip(texts, written, strict=True)]
        return torch.stack(rows)

    _decoded_both_ways(
        model,
        replace(batch, supervised=ends, targets=torch.zeros(2, dtype=torch.long), supervised_counts=(1,) * 2),
        whole,
        5,
    )


class _HidesInTheMiddle(VisualPrompt):
    """The second of three blocks does not read the reserved places."""

    def visible(self, site):
        return () if site.block == 1 else None


@pytest.mark.parametrize("extra", [0, GROW - 9])
def test_decoding_hides_the_places_that_the_full_forward_hides(extra):
    """With and without a cache that has to grow."""
    model, _ = pair("qwen3")
    texts = random_texts(4 + extra, 2, 5)
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)

    def batch(written):
        items = [
            Item(i, EncodedText(text + own, len(text), False), image if i != 1 else None)
            for i, (text, own) in enumerate(zip(texts, written, strict=True))
        ]
        return make_batch(items, 8, (Reserved("places", 3, "after_question"),), last_only=True).batch

    @torch.no_grad()
    def whole(written):
        return model(batch(written))[0]

    empty = [[], [], []]
    everything_read = whole(empty)
    model.method = _HidesInTheMiddle()
    assert not torch.allclose(whole(empty)[0], everything_read[0], atol=1e-4)
    torch.testing.assert_close(whole(empty)[1], everything_read[1])  # it has no such places
    _decoded_both_ways(model, batch(empty), whole, 4)


@pytest.mark.parametrize("spread", [1, 4])
@pytest.mark.parametrize("length", [1, 40, attention_products.LONGEST, attention_products.LONGEST + 1])
def test_gradients_in_16_bits_are_those_of_float64_within_rounding(length, spread):
    """The exact ones of the same rounded inputs: the kernel's own gradients are as far from these. A spread of 4 makes
    scores of 60, of which 16 bits leave too little for an exponential."""
    generator = torch.Generator().manual_seed(7)
    query, key, value = (torch.randn(1, heads, length, 16, generator=generator) for heads in (4, 2, 2))
    query, key, value = (spread * query).bfloat16(), (spread * key).bfloat16(), value.bfloat16()
    weights = torch.randn(1, length, 4, 16, generator=generator).bfloat16()
    packing = Packing(torch.tensor([0, length], dtype=torch.int32), (length,))
    found = {}
    for dtype in (torch.bfloat16, torch.float64):
        inputs = [t.to(dtype).requires_grad_() for t in (query, key, value)]
        out, _ = attend(*inputs, packing, 0.25)
        found[dtype] = torch.autograd.grad((out * weights.to(dtype)).sum(), inputs)
    size = max(exact.norm() for exact in found[torch.float64])
    for low, exact in zip(found[torch.bfloat16], found[torch.float64], strict=True):
        assert (low.double() - exact).norm() <= 0.02 * size


@pytest.mark.parametrize("elements", [1, 2 * 33**2, 8 * 33**2, 2**20])
def test_the_vision_towers_gradients_in_16_bits_whatever_is_computed_at_once(elements, monkeypatch):
    """By single heads, by some heads, by images, and all at once."""
    monkeypatch.setattr(attention_products, "_ELEMENTS", elements)
    generator = torch.Generator().manual_seed(7)
    tensors = [torch.randn(3, 33, 4, 16, generator=generator).bfloat16().transpose(1, 2) for _ in range(4)]
    exact = [t.double().requires_grad_() for t in tensors[:3]]
    query, key, value = exact
    weights = torch.softmax(query @ key.transpose(2, 3) / 4, dim=-1)
    expected = torch.autograd.grad(weights @ value, exact, tensors[3].double())
    inputs = [t.detach().requires_grad_() for t in tensors[:3]]
    found = torch.autograd.grad(attention_products.Unmasked.apply(*inputs, 0.25), inputs, tensors[3])
    for low, right in zip(found, expected, strict=True):
        assert (low.double() - right).norm() <= 0.01 * right.norm()
