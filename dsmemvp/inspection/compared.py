"""What a method without a feed-forward memory has compared in a forward, place by place: for MITP, the similarity of
the two towers' prompts in every hub."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from dsmemvp.backbones.key_value_cache import KeyValueCache
from dsmemvp.data.batch import Batch
from dsmemvp.inspection.heat_map import Scale, sheet
from dsmemvp.inspection.page import LONGEST
from dsmemvp.inspection.probe import Forward
from dsmemvp.markdown import table
from dsmemvp.model import Decoding, VisualLanguageModel
from dsmemvp.prompts.interface import Compared, VisualPrompt


@dataclass(frozen=True)
class Comparison:
    """Of one sample."""

    found: Sequence[Compared]
    """float32, on the CPU, [1, n, n] each"""
    logits: torch.Tensor
    """[S, V] of the same forward"""
    asked: str = ""
    """Question, the model's answer and the right one, in two lines."""

    def table(self) -> list[str]:
        """Place by place, as Markdown. `best` is the mean over rows of the largest of each: if it is near the mean, the
        columns are alike, and mixing by similarity is a mean."""
        matrices = [each.values[0] for each in self.found]
        columns = [
            [self.found[0].what, *(each.where for each in self.found)],
            ["mean", *(f"{m.mean():.3f}" for m in matrices)],
            ["least", *(f"{m.min():.3f}" for m in matrices)],
            ["most", *(f"{m.max():.3f}" for m in matrices)],
            ["best", *(f"{m.max(-1).values.mean():.3f}" for m in matrices)],
        ]
        return table(columns)

    def sheet(self) -> Image.Image:
        """The matrices side by side in the colours of one scale."""
        blank = Image.new("RGB", (LONGEST, LONGEST), "white")
        maps = [[each.values[0].flatten() for each in self.found]]
        title = f"{self.asked}\nrows: vision prompts, columns: text prompts; below each matrix its largest value"
        scale = Scale.of(maps[0], signed=True, unit=self.found[0].what)
        return sheet(blank, maps, ["similarity"], [each.where for each in self.found], title, scale)


def compares(method: type[VisualPrompt]) -> bool:
    """Whether a method has something to show here."""
    return method.compared is not VisualPrompt.compared


def compare(model: VisualLanguageModel, forward: Forward, batch: Batch) -> Comparison:
    """One forward of a batch of one sample. All ranks call it together."""
    with torch.no_grad():
        logits, state = forward(batch, Decoding(KeyValueCache()))
    found = [Compared(each.where, each.values.float().cpu(), each.what) for each in model.method.compared(state)]
    return Comparison(found, logits.float().cpu())
