"""A sample's heat maps on one page: a row for each word, a column for each layer and their mean."""

from collections.abc import Sequence

import torch
from PIL import Image

from dsmemvp.inspection.heat_map import Scale, fitted, of_patches, sheet
from dsmemvp.inspection.probe import Probe, What
from dsmemvp.inspection.words import Word

LONGEST = 160
"""Pixels of a map's longer side."""
EXPLAINED = {
    "activation": "activation (silu(x . K_n), or the separable score) of each patch's slot; red fires, blue below zero",
    "contribution": "share of the memory's output that each patch's slot carries; blue works against it",
    "change": "red: patches whose slots write something else than with {other}",
}
UNITS = {
    "activation": "(activation, no unit)",
    "contribution": "of the memory's output",
    "change": "(norm of the change, in units of hidden states)",
}


def maps(probe: Probe, word: Word, what: What = "change", sample: int = 0) -> torch.Tensor:
    """[Y + 1, P]: of every layer, and their mean."""
    patches = of_patches(probe.at(word.tokens, what, sample)[:, : probe.visual])
    return torch.cat([patches, patches.mean(0, keepdim=True)])


def page(
    probe: Probe,
    picture: Image.Image,
    words: Sequence[Word],
    layers: Sequence[int],
    title: str,
    other: str = "",
    what: What = "change",
    sample: int = 0,
    longest: int = LONGEST,
) -> Image.Image:
    """Of one sample of the probe; `other` is what changes are measured against, in words."""
    found = [maps(probe, word, what, sample) for word in words]
    columns = [*(f"layer {n}" for n in layers), "mean of all layers"]
    text = f"{title}\n{EXPLAINED[what].format(other=other)}\nbelow each map its largest value"
    chosen = [[of_word[n] for n in (*layers, -1)] for of_word in found]
    scale = Scale.of((values for row in chosen for values in row), what != "change", UNITS[what])
    return sheet(fitted(picture, longest), chosen, [word.text for word in words], columns, text, scale)
