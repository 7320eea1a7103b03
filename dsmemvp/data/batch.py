"""One packed micro-batch of tensors, and the items that it is made of (packing.py).

The tokens of all samples lie one after another, and nothing is padded. A prompting method may reserve places in a
sample's sequence (`Reserved`); these count among the tokens, and token 0 stands there. Samples of one
image share its row in `images`, which the vision tower looks at once. In training they lie side by side (`image_rows`
is then in runs), those without an image last, so that what is computed once per image is used by one run of tokens.

Shapes: T tokens, B samples, S supervised tokens, I images, R resolution.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import torch

from dsmemvp.data.captions import CaptionRow
from dsmemvp.data.sample import Sample
from dsmemvp.data.text import EncodedText
from dsmemvp.dropout import Dropout, image_keys, token_keys
from dsmemvp.host_values import from_host


@dataclass(frozen=True)
class Labels:
    """What samples are classified into."""

    classes: int
    several: bool
    """Whether a sample may have any number of them, or exactly one."""
    place: Literal["first", "last"] = "first"
    """The token of the text that they are read from: the one that begins it, or the one that ends it."""

    def targets(self, labels: Sequence[Sequence[int]]) -> torch.Tensor:
        """Of S samples: [S] int64, or float32 [S, classes] if there may be several."""
        if not self.several:
            return torch.tensor([own for (own,) in labels], dtype=torch.long)
        found = torch.zeros(len(labels), self.classes)
        for row, own in zip(found, labels, strict=True):
            row[list(own)] = 1.0
        return found


@dataclass(frozen=True)
class Item:
    """One sample, ready for a batch."""

    index: int
    text: EncodedText
    image: torch.Tensor | None
    """[3, R, R] uint8, or features [P, v] (data/feature_cache.py)"""
    sample: Sample | None = None
    """Its fields, if they are needed for scoring."""
    labels: tuple[int, ...] = ()
    """If it is classified."""
    caption: CaptionRow | None = None
    """If the method reads it."""


class Skip(NamedTuple):
    """A sample that was left out. It took its place in the order all the same."""

    position: int
    """Place in the global batch."""
    message: str
    """File, key and reason."""


@dataclass(frozen=True)
class Captions:
    """The samples' captions in a tokenizer of the method's own (BERT's), padded behind to its text length L."""

    tokens_BL: torch.Tensor
    """int64: [CLS], the caption, [SEP]; in place of none, padding alone"""
    mask_BL: torch.Tensor
    """bool: where there is a token"""
    drawn_BL: torch.Tensor
    """bool: places drawn for [MASK], by seed, epoch and sample; never padding or [CLS]"""
    lengths: tuple[int, ...]
    """Tokens of each; what mask_BL says, without a transfer from a GPU."""
    mask_token: int
    """The tokenizer's [MASK]"""
    vectors_BH: torch.Tensor | None = None
    """float32: what the teacher makes of each, if that is stored beside the shards (data/vectors.py)"""

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Captions":
        """The same with every tensor changed so."""
        return replace(
            self,
            tokens_BL=change(self.tokens_BL),
            mask_BL=change(self.mask_BL),
            drawn_BL=change(self.drawn_BL),
            vectors_BH=None if self.vectors_BH is None else change(self.vectors_BH),
        )


@dataclass(frozen=True)
class Batch:
    """All that the model reads."""

    tokens: torch.Tensor
    """[T] int64"""
    cu_seqlens: torch.Tensor
    """[B + 1] int32: sample b's tokens are tokens[cu_seqlens[b] : cu_seqlens[b + 1]]"""
    positions: torch.Tensor
    """[T] int64: each token's position in its own sample"""
    spans: torch.Tensor
    """[B, 2, 2] int64: [start, stop) in T of each sample's question and of its answer"""
    places: dict[str, torch.Tensor]
    """Name of reserved places -> their indices into T, int64, in the order of the samples that have them"""
    supervised: torch.Tensor
    """[S] int64: indices into T whose next token is trained"""
    targets: torch.Tensor
    """[S] int64: those next tokens; of samples that are classified, their labels (`Labels.targets`)"""
    images: torch.Tensor
    """[I, 3, R, R] uint8, normalised by the vision tower on its device; I may be 0. With vision.cache_features, if I is
    not 0, [I, P, v] in the compute type: what the tower has made of them"""
    image_of: torch.Tensor
    """[B] int64: row in `images`, -1 for a sample without one"""
    lengths: tuple[int, ...]
    """Of the B samples; what cu_seqlens says, without a transfer from a GPU."""
    image_rows: tuple[int, ...]
    """What image_of says, without a transfer from a GPU."""
    supervised_counts: tuple[int, ...]
    """How many supervised tokens each of the B samples has."""
    sample_ids: torch.Tensor
    """[B] int64: running numbers in the data set, by which dropout tells samples apart"""
    image_ids: torch.Tensor
    """[I] int64: checksums of the images, for the same"""
    dropout_seed: int = 0
    """Of the run and the step."""
    captions: Captions | None = None
    """Of the B samples, for a method that reads them; a lone token has one of padding alone."""

    @property
    def size(self) -> int:
        return len(self.lengths)

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """[start, stop) of every sample in T."""
        bounds, start = [], 0
        for length in self.lengths:
            bounds.append((start, start + length))
            start += length
        return bounds

    @cached_property
    def image_runs(self) -> list[tuple[int, int, int]]:
        """(row of the image or -1, number of samples, number of tokens) of each run of samples that look at the same
        image, or at none."""
        runs = [
            (row, list(run)) for row, run in groupby(zip(self.image_rows, self.lengths, strict=True), itemgetter(0))
        ]
        return [(row, len(run), sum(length for _, length in run)) for row, run in runs]

    @cached_property
    def text_positions(self) -> torch.Tensor:
        """[T] int64: each token's position in its sample's text, reserved places not counted, which have any."""
        is_text = torch.ones_like(self.tokens)
        for place in self.places.values():
            is_text[place] = 0
        before = torch.cat((is_text.new_zeros(1), is_text.cumsum(0)))
        starts = before[self.cu_seqlens[:-1].long()]
        of_start = starts.repeat_interleave(from_host(self.lengths, starts.device), output_size=self.tokens.shape[0])
        return before[:-1] - of_start

    def at_supervised(self) -> "Batch":
        """The supervised tokens alone, each at its old position and by its old dropout; without reserved places."""
        counts = from_host([0, *self.supervised_counts], self.cu_seqlens.device, torch.int32)
        return replace(
            self,
            tokens=self.tokens[self.supervised],
            positions=self.positions[self.supervised],
            cu_seqlens=counts.cumsum(0, dtype=torch.int32),
            lengths=self.supervised_counts,
            places={name: place[:0] for name, place in self.places.items()},
            spans=torch.zeros_like(self.spans),
            supervised=torch.arange(self.supervised.shape[0], device=self.supervised.device),
        )

    @cached_property
    def token_dropout(self) -> Dropout:
        """One key for each of the T tokens."""
        return Dropout(token_keys(self.sample_ids, self.lengths, self.positions, self.dropout_seed))

    def image_dropout(self, rows: int, tokens: int) -> Dropout:
        """One key for each of an image's `tokens` tokens, [rows, tokens]; of the dummy row if there is no image. Rows
        are the images, or if samples share some, as a method may have it, the samples with an image."""
        ids = self.image_ids if self.image_ids.shape[0] else self.image_ids.new_zeros(1)
        if rows != ids.shape[0]:
            ids = ids[[row for row in self.image_rows if row >= 0]]
        return Dropout(image_keys(ids, tokens, self.dropout_seed))

    def to(self, device: torch.device) -> "Batch":
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """In pinned memory, from which copies to a GPU run beside its work."""
        return self.map(torch.Tensor.pin_memory)

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """The same batch with every tensor changed so."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {
            name: change(value) for name, value in values.items() if isinstance(value, torch.Tensor)
        }
        captions = self.captions.map(change) if self.captions is not None else None
        places = {name: change(place) for name, place in self.places.items()}
        return replace(self, **changed, places=places, captions=captions)


@dataclass(frozen=True)
class MicroBatch:
    """A batch, and beside it what the model never reads."""

    batch: Batch
    indices: tuple[int, ...]
    """Running numbers of the samples in the data set, in the batch's order; none for a batch without samples."""
    cut: int = 0
    """How many samples had their context shortened."""
    skipped: tuple[Skip, ...] = ()
    """Samples that were left out."""
    assigned: tuple[tuple[int, int], ...] = ()
    """(place in the global batch, running number) of all samples assigned to this batch, those left out included."""
    samples: tuple[Sample, ...] = ()
    """The samples' fields, if they are needed for scoring."""

    def pin_memory(self) -> "MicroBatch":
        """Called by the loader, if it pins."""
        return replace(self, batch=self.batch.pin_memory())
