"""Samples packed together against each by itself: loss, gradients, and what no sample may see of another."""

import pytest
import small
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dsmemvp.data.batch import Batch, Item
from dsmemvp.data.packing import by_image, make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.model import VisualLanguageModel, loss_sum

METHODS = ("memvp", "separable", "input_space", "dvp")
TEXTS = [[1, 5, 9, 3, 7, 30, 41], [1, 8, 4], [1], [1, 7, 7, 50, 12]]
PATTERNS = [
    *((None, None, None, None), (0, 1, 2, 3), (None, 0, None, 1), (0, None, None, None)),
    *((0, 0, 0, 0), (0, None, 0, 1), (1, 0, 0, None), (0, 1, 0, 1)),  # shared ones, side by side and apart
]


def _model(method: str) -> VisualLanguageModel:
    """Every trained tensor takes part, and rounding is not blown up."""
    model = small.model(method)
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def _items(texts, pattern, pictures=None) -> list[Item]:
    pictures = pictures or small.pictures(4)
    return [
        Item(i, EncodedText(text, max(1, len(text) // 2), False), None if row is None else pictures[row])
        for i, (text, row) in enumerate(zip(texts, pattern, strict=True))
    ]


def _batch(model: VisualLanguageModel, items: list[Item]) -> Batch:
    return make_batch(items, small.RESOLUTION, model.method.reserved()).batch


def _gradients(model: VisualLanguageModel, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = loss_sum(model(batch)[0], batch.targets)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.trainables().items()}


@pytest.mark.parametrize("method", METHODS)
def test_packed_and_one_by_one_have_the_same_loss_and_gradients(method):
    model = _model(method)
    for pattern in PATTERNS:
        items = _items(TEXTS, pattern)
        loss, gradients = _gradients(model, [_batch(model, by_image(items))])
        wanted, each = _gradients(model, [_batch(model, [item]) for item in items])
        assert loss == pytest.approx(wanted, rel=1e-6), pattern
        for name, gradient in gradients.items():
            assert (gradient - each[name]).norm() <= 1e-6 * each[name].norm() + 1e-7, (pattern, name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", [(0, None, 1, 2), (0, 1, None, None), (0, 1, 2, 3), (None, 0, None, 1)])
def test_no_sample_sees_another_s_tokens_or_image(method, pattern):
    """Bit for bit, in the same shapes."""
    model, pictures = _model(method), small.pictures(8)
    before = _logits(model, _items(TEXTS, pattern, pictures))
    for changed, row in enumerate(pattern):
        texts = [[token + 1 for token in text] if i == changed else text for i, text in enumerate(TEXTS)]
        rows = [7 if i == changed and row is not None else own for i, own in enumerate(pattern)]
        after = _logits(model, _items(texts, rows, pictures))
        for i in range(len(TEXTS)):
            assert torch.equal(before[i], after[i]) is (i != changed or not before[i].numel()), (changed, i)


@torch.no_grad()
def _logits(model: VisualLanguageModel, items: list[Item]) -> list[torch.Tensor]:
    """Of each sample."""
    batch = _batch(model, items)
    logits, _ = model(batch)
    return [logits[(batch.supervised >= start) & (batch.supervised < stop)] for start, stop in batch.bounds]


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor with a gradient's or an activation's type."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.is_floating_point()]
        self.elements = max(self.elements, *(t.numel() for t in tensors), 0)
        return out


def test_nothing_is_as_large_as_all_tokens_times_all_slots():
    model = _model("memvp")
    model.method.key_positions.data = torch.randn(400, 32)
    model.method.value_positions.data = torch.randn(400, 32)
    samples, length = 4, 120
    items = _items([[1 + i % 50 for i in range(length + n)] for n in range(samples)], range(samples))
    with _Largest() as largest:
        batch = _batch(model, items)
        loss_sum(model(batch)[0], batch.targets).backward()
    tokens, slots = len(batch.tokens), 400
    assert tokens * slots <= largest.elements < tokens * samples * slots / 2
