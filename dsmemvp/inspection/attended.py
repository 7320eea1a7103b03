"""Where a method's query looks in a picture: attention weights over the patches, head by head, measured by a hook
beside the model. H heads, k prompts, N image tokens, P patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from dsmemvp.backbones.key_value_cache import KeyValueCache
from dsmemvp.data.batch import Batch
from dsmemvp.inspection.heat_map import Scale, fitted, of_patches, sheet
from dsmemvp.inspection.page import LONGEST
from dsmemvp.inspection.probe import Forward
from dsmemvp.markdown import table
from dsmemvp.model import Decoding, VisualLanguageModel
from dsmemvp.prompts.interface import VisualPrompt

HEADS = 4
"""Drawn beside their mean: those that look most sharply."""


@dataclass(frozen=True)
class Attended:
    """Of one sample."""

    weights_HkN: torch.Tensor
    """float32, on the CPU; over all image tokens they sum to 1"""
    picture: Image.Image
    asked: str
    """Question, the model's answer and the right one, in two lines."""

    def table(self) -> list[str]:
        """Head by head, as Markdown, the mean over prompts. The entropy is in nats; `even` is that of looking at all
        tokens alike."""
        entropy_H = torch.special.entr(self.weights_HkN).sum(-1).mean(-1)
        patches_HkP = of_patches(self.weights_HkN)
        columns = [
            ["head", *map(str, range(len(entropy_H)))],
            ["entropy", *(f"{value:.3f}" for value in entropy_H)],
            ["largest of a patch", *(f"{value:.3f}" for value in patches_HkP.amax(-1).mean(-1))],
            ["beside the patches", *(f"{abs(1 - value):.1%}" for value in patches_HkP.sum(-1).mean(-1))],
        ]
        even = torch.tensor(float(self.weights_HkN.shape[-1])).log()
        return [f"attention of {len(entropy_H)} heads; even: entropy {even:.3f}", "", *table(columns)]

    def sheet(self, longest: int = LONGEST) -> Image.Image:
        """A row for each prompt; the mean over heads, and the heads that look most sharply."""
        sharp = torch.special.entr(self.weights_HkN).sum(-1).mean(-1).argsort()[:HEADS].tolist()
        shown = of_patches(self.weights_HkN)
        rows = [f"prompt {n}" for n in range(shown.shape[1])]
        maps = [[shown[:, n].mean(0), *(shown[head, n] for head in sharp)] for n in range(shown.shape[1])]
        title = f"{self.asked}\nred: patches that the question looks at; below each map its largest weight"
        scale = Scale.of((values for row in maps for values in row), signed=False, unit="(attention weight)")
        columns = ["mean of heads", *(f"head {head}" for head in sharp)]
        return sheet(fitted(self.picture, longest), maps, rows, columns, title, scale)


def looks(method: type[VisualPrompt]) -> bool:
    """Whether a method has a query to follow."""
    return method.looking is not VisualPrompt.looking


def attention_weights(
    model: VisualLanguageModel, forward: Forward, batch: Batch
) -> tuple[Sequence[torch.Tensor], torch.Tensor]:
    """Of each sample with an image [H, k, N], and the logits [S, V] of the same forward; on the CPU. All ranks call it
    together."""
    seen: list[torch.Tensor] = []

    def keep(module: Any, given: Any, out: tuple[torch.Tensor, torch.Tensor]) -> None:
        seen.append(out[1].float().cpu())

    module = model.method.looking()
    assert module is not None
    hook = module.register_forward_hook(keep)
    try:
        with torch.no_grad():
            logits, _ = forward(batch, Decoding(KeyValueCache()))
    finally:
        hook.remove()
    return list(seen[0]), logits.float().cpu()
