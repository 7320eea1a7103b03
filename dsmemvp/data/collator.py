"""Encoded samples -> a micro-batch: the same on every rank and worker, and in the tools that look at data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import Item, MicroBatch, Reserved, Skip, by_image, make_batch
from dsmemvp.data.images import ImageTransform
from dsmemvp.data.sample import BadSample, EncodedSample, Sample, SampleError, read_sample
from dsmemvp.data.text import EncodedText, encode_for_answer, encode_for_training
from dsmemvp.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Collator:
    """How a sample becomes an item; the same on every rank and worker."""

    tokenizer_path: str
    image: ImageTransform
    captions: bool
    max_length: int
    skip_bad: bool
    reserved: tuple[Reserved, ...] = ()
    """Places a prompting method reserves in the sequence of a sample with an image."""
    blind: bool = False
    """Replace every image by none."""
    answers: bool = False
    """Encode for reading an answer instead of for training."""

    def item(self, tokenizer: Tokenizer, sample: Sample) -> Item:
        text = self.text(tokenizer, sample)
        encoded = None if self.blind else sample.image
        image = self.image(encoded, sample.where) if encoded is not None else None
        fields = replace(sample, image=b"" if sample.image is not None else None) if self.answers else None
        return Item(sample.index, text, image, fields)

    def text(self, tokenizer: Tokenizer, sample: Sample) -> EncodedText:
        """Raises SampleError."""
        encode = encode_for_answer if self.answers else encode_for_training
        return encode(tokenizer, sample, self.captions, self.max_length)

    def batch(self, tokenizer: Tokenizer, entries: Sequence[tuple[int, EncodedSample | BadSample]]) -> MicroBatch:
        """A micro-batch of (place in the global batch, sample). Raises SampleError at the first bad one if the recipe
        does not allow skipping."""
        items, skipped = [], []
        for position, entry in entries:
            try:
                if isinstance(entry, BadSample):
                    raise entry.error
                items.append(self.item(tokenizer, read_sample(entry)))
            except SampleError as error:
                if not self.skip_bad:
                    raise
                skipped.append(Skip(position, str(error)))
        ordered = items if self.answers else by_image(items)  # answers are distinguished by their order in the file
        micro_batch = make_batch(ordered, self.image.resolution, self.reserved, last_only=self.answers)
        assigned = tuple((position, entry.index) for position, entry in entries)
        return replace(micro_batch, skipped=tuple(skipped), assigned=assigned)


def recipe_collator(recipe: Recipe, resolution: int, vocabulary: int) -> Collator:
    """The collator that a recipe describes, for training; `resolution` and `vocabulary` are the models'. Raises
    UserError if the tokenizer is another model's."""
    tokenizer = Tokenizer(recipe.model.tokenizer)
    tokenizer.check_fits(vocabulary, recipe.model.tokenizer)
    return Collator(
        tokenizer_path=recipe.model.tokenizer,
        image=ImageTransform(resolution, recipe.vision.max_pixels),
        captions=recipe.data.captions,
        max_length=recipe.data.max_length,
        skip_bad=recipe.data.on_bad_sample == "skip",
    )
