"""Samples -> one micro-batch of tensors.

A batch is packed: the tokens of all samples one after another, with offsets; images only of samples that have one.
`place` and its relatives say where each token stands when the same batch is laid out padded, [B, L], which is what
attention without variable lengths needs; slots that a prompting method reserves (`slots` per image, after BOS) are
counted there. Right padding: under a causal mask no real token ever sees a padded place.

Shapes: T tokens in the pack, B samples, L padded length, S supervised tokens, I images, R resolution.
"""

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch

from dsmemvp.data.sample import Sample
from dsmemvp.data.text import EncodedText


@dataclass(frozen=True)
class Item:
    """One sample, ready for a batch."""

    index: int
    text: EncodedText
    image: torch.Tensor | None
    sample: Sample | None = None
    """Its fields, where they are needed for scoring."""


class Skip(NamedTuple):
    """A sample that was left out. It took its place all the same."""

    position: int
    """Place in the global batch."""
    message: str
    """File, key and reason."""


@dataclass(frozen=True)
class Batch:
    tokens: torch.Tensor
    """[T] int64"""
    offsets: torch.Tensor
    """[B + 1] int64: sample b's tokens are tokens[offsets[b] : offsets[b + 1]]"""
    supervised: torch.Tensor
    """[S] int64: flat places in [B * L] whose next token is trained"""
    targets: torch.Tensor
    """[S] int64: those next tokens"""
    images: torch.Tensor
    """[I, 3, R, R] float32; I may be 0"""
    image_of: torch.Tensor
    """[B] int64: row in `images`, -1 for a sample without one"""
    place: torch.Tensor
    """[T] int64: flat place of every token in [B * L]"""
    slot_place: torch.Tensor
    """int64: flat places of the reserved slots, sample by sample with an image; [I * slots] where none share one"""
    indices: torch.Tensor
    """[B] int64: the samples' running numbers in the data set"""
    length: int
    """L"""
    cut: int = 0
    """How many samples had their context shortened."""
    skipped: tuple[Skip, ...] = ()
    """Samples that were left out."""
    dealt: tuple[tuple[int, int], ...] = ()
    """(place in the global batch, running number) of all samples dealt to this batch, those left out included."""
    samples: tuple[Sample, ...] = ()
    """The samples' fields, where they are needed for scoring."""

    @property
    def size(self) -> int:
        return self.image_of.shape[0]

    @property
    def cost(self) -> int:
        """Places computed when the batch is laid out padded: B x L."""
        return self.size * self.length

    def to(self, device: torch.device) -> "Batch":
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device, non_blocking=True) for k, v in moved.items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)


def make_batch(items: list[Item], resolution: int, slots: int = 0, last_only: bool = False) -> Batch:
    """Pack items. `last_only` supervises only the last token's place (with target 0): for reading an answer.

    An empty list is a batch that computes on one lone BOS-like token and trains nothing: every rank must run the same
    modules even when all its samples were left out. Items that hold the same image tensor share its row.
    """
    lengths = [len(item.text.tokens) for item in items] or [1]
    extra = [slots if item.image is not None else 0 for item in items] or [0]
    length = max(n + e for n, e in zip(lengths, extra, strict=True))
    place, slot_place, supervised, targets = [], [], [], []
    for b, item in enumerate(items):
        base, shift, tokens = b * length, extra[b], item.text.tokens
        place += [base, *range(base + 1 + shift, base + shift + len(tokens))]
        slot_place += list(range(base + 1, base + 1 + shift))
        if last_only:
            supervised.append(base + shift + len(tokens) - 1 if len(tokens) > 1 else base)
            targets.append(0)
        else:
            supervised += range(base + shift + item.text.prompt - 1, base + shift + len(tokens) - 1)
            targets += tokens[item.text.prompt :]
    images: list[torch.Tensor] = []
    image_of, rows = [], {}
    for item in items:
        if item.image is not None and id(item.image) not in rows:
            rows[id(item.image)] = len(images)
            images.append(item.image)
        image_of.append(rows[id(item.image)] if item.image is not None else -1)
    return Batch(
        tokens=torch.tensor([t for item in items for t in item.text.tokens] or [0]),
        offsets=torch.tensor([0, *lengths]).cumsum(0),
        supervised=torch.tensor(supervised, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        images=torch.stack(images) if images else torch.zeros(0, 3, resolution, resolution),
        image_of=torch.tensor(image_of or [-1]),
        place=torch.tensor(place or [0]),
        slot_place=torch.tensor(slot_place, dtype=torch.long),
        indices=torch.tensor([item.index for item in items], dtype=torch.long),
        length=length,
        cut=sum(item.text.cut for item in items),
        samples=tuple(item.sample for item in items if item.sample is not None),
    )
