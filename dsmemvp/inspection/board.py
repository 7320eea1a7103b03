"""A few fixed samples in TensorBoard: heat maps, norms layer by layer, slot activations, texts.

All ranks call `board_report` together, with the same samples, since under ZeRO-3 every rank takes part in a forward;
the first one writes what it returns. It costs two forwards of these samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from dsmemvp.data.collator import Collator
from dsmemvp.data.images import decoded
from dsmemvp.data.packing import make_batch
from dsmemvp.data.sample import Sample
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.data_tools.answers import right_answer
from dsmemvp.inspection.attended import attention_weights, looks
from dsmemvp.inspection.look import asked, attended, model_answer, spread
from dsmemvp.inspection.page import page
from dsmemvp.inspection.probe import Forward, Probe, has_memory, memory_of, probe
from dsmemvp.inspection.table import memory_norms, shares
from dsmemvp.inspection.words import chosen_words
from dsmemvp.model import VisualLanguageModel
from dsmemvp.training.event_file import EventFile


@dataclass
class BoardReport:
    """By their names in TensorBoard."""

    scalars: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, torch.Tensor] = field(default_factory=dict)
    images: dict[str, np.ndarray] = field(default_factory=dict)
    """[height, width, 3] uint8"""
    texts: dict[str, str] = field(default_factory=dict)

    def write(self, board: EventFile, step: int) -> None:
        for name, number in self.scalars.items():
            board.add_scalar(name, number, step)
        for name, values in self.histograms.items():
            board.add_histogram(name, values, step)
        for name, pixels in self.images.items():
            board.add_image(name, pixels, step)
        for name, text in self.texts.items():
            board.add_text(name, text, step)


def board_report(
    model: VisualLanguageModel,
    forward: Forward,
    collator: Collator,
    tokenizer: Tokenizer,
    samples: Sequence[Sample],
    texts: Mapping[str, str] | None = None,
) -> BoardReport:
    """Of samples with pictures (others are passed over), encoded for their answers. Heat maps show the change against
    these samples' mean memory, or against no picture if there is one sample; of a method that looks at pictures, its
    attention. `texts`, such as predictions, are passed on. For other methods, and without pictures, nothing
    but the texts is reported; dropout must be off."""
    report = BoardReport(texts=dict(texts or {}))
    samples = [sample for sample in samples if sample.image is not None]
    if not samples or not (has_memory(type(model.method)) or looks(type(model.method))):
        return report
    collator = replace(collator, answers=True, blind=False)
    items = [replace(collator.item(tokenizer, sample), sample=None) for sample in samples]
    if looks(type(model.method)):
        batch = make_batch(items, collator.image.resolution, collator.reserved, last_only=True).batch
        weights, logits = attention_weights(model, forward, batch)
        for sample, own, row in zip(samples, weights, logits, strict=True):
            sheet = attended(sample, own, row, tokenizer, collator, right_answer(sample)).sheet()
            report.images[f"attention/sample {sample.index}"] = np.asarray(sheet)
        return report
    others = items if len(items) > 1 else [replace(items[0], image=None)]
    batch, other = (
        make_batch(i, collator.image.resolution, collator.reserved, last_only=True).batch for i in (items, others)
    )
    against = memory_of(model, forward, other).mean()
    found = probe(model, forward, batch, against)
    answers = found.logits.argmax(-1).tolist()
    _numbers(report, found, len(samples))
    named = against.of if len(samples) > 1 else "no picture"
    layers = spread(found.layers, 4)
    for n, (sample, item) in enumerate(zip(samples, items, strict=True)):
        assert sample.image is not None
        words = chosen_words(tokenizer, item.text.tokens, sample.question)
        picture = decoded(sample.image, sample.where, collator.image.max_pixels)
        title = asked(sample.question, model_answer(tokenizer, answers[n], sample.choices), right_answer(sample))
        sheet = page(found, picture, words, layers, title, named, sample=n)
        report.images[f"visual memory/sample {sample.index}"] = np.asarray(sheet)
    return report


def _numbers(report: BoardReport, found: Probe, samples: int) -> None:
    """Means over the samples."""
    for name in memory_norms(found):
        report.scalars[f"visual memory/{name}"] = sum(memory_norms(found, n)[name] for n in range(samples)) / samples
    rows = [shares(found, n) for n in range(samples)]
    for layer in range(found.layers):
        of_layer = [row[layer] for row in rows]
        for name in ("branch_norm", "feed_forward_norm", "ratio", "visual_output", "visual_activation"):
            mean = sum(getattr(part, name) for part in of_layer) / samples
            report.scalars[f"visual memory {name}/layer {layer:02}"] = mean
    for layer in spread(found.layers):
        report.histograms[f"visual memory activation/layer {layer:02}"] = found.activation[layer]
