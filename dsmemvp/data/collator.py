"""Encoded samples -> a micro-batch: the same on every rank and worker, and in the tools that look at data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dsmemvp.config.hub import local
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import Item, Labels, MicroBatch, Skip
from dsmemvp.data.captions import CaptionReader
from dsmemvp.data.feature_cache import CachedFeatures
from dsmemvp.data.images import ImageTransform
from dsmemvp.data.layout import Reserved
from dsmemvp.data.packing import batch_captions, by_image, make_batch
from dsmemvp.data.sample import BadSample, EncodedSample, Sample, SampleError, read_sample
from dsmemvp.data.text import EncodedText, encode_caption, encode_for_answer, encode_for_classes, encode_for_training
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.data.vectors import CaptionVectors


@dataclass(frozen=True)
class Collator:
    """How a sample becomes an item; the same on every rank and worker."""

    tokenizer_path: str
    image: ImageTransform | CachedFeatures
    captions: bool
    max_length: int
    skip_bad: bool
    reserved: tuple[Reserved, ...] = ()
    """Places a prompting method reserves in the sequence of a sample with an image."""
    blind: bool = False
    """Replace every image by none."""
    answers: bool = False
    """Encode for reading an answer instead of for training."""
    labels: Labels | None = None
    """What samples are classified into; None if they have answers."""
    caption_reader: CaptionReader | None = None
    """For a method that reads captions by itself."""
    vectors: CaptionVectors | None = None
    """What is stored of the captions."""

    def item(
        self, tokenizer: Tokenizer, sample: Sample, seen: dict[bytes, torch.Tensor] | None = None, epoch: int = 0
    ) -> Item:
        """`seen`: images by their encoded bytes; one that is among them is taken from there, another is added. Raises
        SampleError."""
        text = self.text(tokenizer, sample)
        seen = {} if seen is None else seen
        encoded = None if self.blind else sample.image
        if encoded is not None and encoded not in seen:
            seen[encoded] = self.image(encoded, sample.where)
        image = seen[encoded] if encoded is not None else None
        fields = replace(sample, image=b"" if sample.image is not None else None) if self.answers else None
        reader = None if self.answers else self.caption_reader
        caption = reader.row(sample, epoch) if reader is not None else None
        return Item(sample.index, text, image, fields, sample.labels or (), caption)

    def text(self, tokenizer: Tokenizer, sample: Sample) -> EncodedText:
        """Raises SampleError."""
        self.check_labels(sample)
        if self.labels is not None:
            return encode_for_classes(tokenizer, sample, self.captions, self.max_length)
        described = not self.answers or sample.scores.get("task") == "caption"
        if self.caption_reader is not None and self.caption_reader.text.target and described:
            bos_too = self.caption_reader.text.supervise_bos
            return encode_caption(tokenizer, sample, self.max_length, bos_too, self.answers)
        encode = encode_for_answer if self.answers else encode_for_training
        return encode(tokenizer, sample, self.captions, self.max_length)

    def check_labels(self, sample: Sample) -> None:
        """Raises SampleError for a sample that is of another task."""
        if self.labels is None:
            if sample.labels is not None:
                raise SampleError(sample.where, "has a class (label or labels), but the method writes answers")
            return
        if sample.labels is None:
            raise SampleError(sample.where, "has no class (label or labels), which the method learns")
        if sample.several and not self.labels.several:
            raise SampleError(sample.where, "has labels; set method.loss to multi_label, or give one label")
        if outside := [label for label in sample.labels if label >= self.labels.classes]:
            raise SampleError(
                sample.where, f"label {outside[0]} is outside of the {self.labels.classes} classes of method.classes"
            )

    def batch(
        self, tokenizer: Tokenizer, entries: Sequence[tuple[int, EncodedSample | BadSample]], epoch: int = 0
    ) -> MicroBatch:
        """A micro-batch of (place in the global batch, sample), in this epoch of the stage. Samples whose images are
        the same bytes share one: it is decoded once, and the vision tower looks at it once. Raises SampleError at the
        first bad one if the recipe does not allow skipping."""
        items, skipped = [], []
        seen: dict[bytes, torch.Tensor] = {}
        for position, entry in entries:
            try:
                if isinstance(entry, BadSample):
                    raise entry.error
                items.append(self.item(tokenizer, read_sample(entry), seen, epoch))
            except SampleError as error:
                if not self.skip_bad:
                    raise
                skipped.append(Skip(position, str(error)))
        ordered = items if self.answers else by_image(items)  # answers are distinguished by their order in the file
        micro_batch = make_batch(
            ordered, self.image.resolution, self.reserved, last_only=self.answers, labels=self.labels
        )
        if self.caption_reader is not None and not self.answers:
            captions = batch_captions([item.caption for item in ordered if item.caption], self.caption_reader)
            if self.vectors is not None:
                captions = replace(captions, vectors_BH=self.vectors.rows([item.index for item in ordered]))
            micro_batch = replace(micro_batch, batch=replace(micro_batch.batch, captions=captions))
        assigned = tuple((position, entry.index) for position, entry in entries)
        return replace(micro_batch, skipped=tuple(skipped), assigned=assigned)


def recipe_collator(recipe: Recipe, resolution: int, vocabulary: int) -> Collator:
    """The collator that a recipe describes, for training; `resolution` and `vocabulary` are the models'. Raises
    UserError if the tokenizer is another model's."""
    tokenizer = Tokenizer(recipe.model.tokenizer)
    tokenizer.check_fits(vocabulary, recipe.model.tokenizer)
    return Collator(
        tokenizer_path=local(recipe.model.tokenizer, "model.tokenizer"),
        image=ImageTransform(resolution, recipe.vision.max_pixels),
        captions=recipe.data.captions,
        max_length=recipe.data.max_length,
        skip_bad=recipe.data.on_bad_sample == "skip",
    )
