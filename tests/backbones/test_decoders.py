"""The decoder families against transformers' own models: one sample alone bit for bit, packs closely."""

from dataclasses import replace

import pytest
import torch
from decoders import CASES, batch_of, pair, random_texts


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_samples_logits_are_transformers_bit_for_bit(case, dtype):
    ours, theirs = pair(case, dtype)
    for text in random_texts(20, 1, 33):
        with torch.no_grad():
            mine, losses = ours(batch_of([text]))
            stock = theirs(input_ids=torch.tensor([text])).logits[0].float()
        assert torch.equal(mine, stock) and losses == {}


@pytest.mark.parametrize("case", CASES)
def test_one_samples_gradients_are_transformers_own(case):
    """Bit for bit but for grouped queries, where those of a group are added in another order."""
    ours, theirs = pair(case)
    (text,) = random_texts(20)
    weights = torch.randn(20, 50, generator=torch.Generator().manual_seed(2))
    (ours(batch_of([text]))[0] * weights).sum().backward()
    (theirs(input_ids=torch.tensor([text])).logits[0] * weights).sum().backward()
    stock = {name.removeprefix("model."): p.grad for name, p in theirs.named_parameters()}
    mine = {name: p.grad for name, p in ours.language.named_parameters()}
    assert mine.keys() == stock.keys() and len(mine) > 20
    error = max((mine[name] - stock[name]).norm() / stock[name].norm() for name in mine)
    assert error <= (1e-6 if ours.language.config.num_key_value_heads < 4 else 0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pack_has_the_logits_of_its_samples_alone(case, dtype):
    """Attention is called sample by sample; matrix products of more rows may be summed in another order."""
    ours, theirs = pair(case, dtype)
    texts = random_texts(6, 3, 17, 1, 3)
    with torch.no_grad():
        packed, _ = ours(batch_of(texts))
        alone = torch.cat([theirs(input_ids=torch.tensor([text])).logits[0] for text in texts]).float()
    error = (packed - alone).norm() / alone.norm()
    assert error <= (1e-6 if dtype == torch.float32 else 1e-2)


def test_a_packs_gradients_are_the_sums_of_its_samples_gradients():
    texts = random_texts(6, 3, 17)
    together, apart = pair("qwen3")[0], pair("qwen3")[0]
    together(batch_of(texts))[0].square().sum().backward()
    for text in texts:
        apart(batch_of([text]))[0].square().sum().backward()
    alone = dict(apart.named_parameters())
    for name, parameter in together.named_parameters():
        assert (parameter.grad - alone[name].grad).norm() <= 1e-6 * alone[name].grad.norm(), name


def test_no_sample_reads_another_ones_tokens():
    ours, _ = pair("mistral")
    texts = random_texts(6, 3, 17)
    with torch.no_grad():
        before, _ = ours(batch_of(texts))
        after, _ = ours(batch_of([texts[0], [49, 48, 47], texts[2]]))
    assert torch.equal(before[:6], after[:6]) and torch.equal(before[9:], after[9:])
    assert not torch.allclose(before[6:9], after[6:9])


def test_logits_are_made_at_supervised_places_only():
    ours, _ = pair("llama")
    rows = []
    ours.language.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape))
    batch = batch_of(random_texts(20))
    ours(replace(batch, supervised=batch.supervised[-3:], supervised_counts=(3,)))
    assert rows == [(3, 50)]
