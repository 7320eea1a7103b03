"""Keys and values of the tokens before, in decoding."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

GROW = 64
"""Places by which a cache grows, so that few steps of decoding copy it."""


@dataclass
class KeyValueCache:
    """Keys and values of every layer, [B, key/value heads, C, D], of which sample b has filled the first
    `lengths[b]` places. Padding is in here and nowhere else."""

    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    hidden: dict[int, torch.Tensor] = field(default_factory=dict)
    """[B, C] bool, of layers that do not read all places."""
    lengths: list[int] = field(default_factory=list)
    """Of the samples, as they were before this forward."""
    lengths_B: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    """The same on the keys' device, changed in place: a step of decoding may be recorded (generation/steps.py)."""

    def fill(
        self,
        layer: int,
        key: torch.Tensor,
        value: torch.Tensor,
        lengths: Sequence[int],
        hidden: torch.Tensor | None = None,
    ) -> None:
        """Keep the prompts' keys and values, [1, heads, T, D]; `hidden` [T] if the layer does not read all places."""
        self.layers[layer] = (_padded(key, lengths), _padded(value, lengths))
        if hidden is not None:
            self.hidden[layer] = _padded(hidden[None, None, :, None], lengths)[:, 0, :, 0]

    def begin(self, lengths: Sequence[int], cu_seqlens: torch.Tensor) -> None:
        """The prompts have been read."""
        self.lengths, self.lengths_B = list(lengths), cu_seqlens.diff().long()

    def make_room(self) -> bool:
        """For one token more of every sample; whether tensors had to be replaced by larger ones."""
        if all(max(self.lengths) < key.shape[2] for key, _ in self.layers.values()):
            return False
        for layer, (key, value) in self.layers.items():
            self.layers[layer] = (F.pad(key, (0, 0, 0, GROW)), F.pad(value, (0, 0, 0, GROW)))
        self.hidden = {layer: F.pad(places, (0, GROW)) for layer, places in self.hidden.items()}
        return True

    def advance(self) -> None:
        """Every layer has got a token more of every sample."""
        self.lengths = [length + 1 for length in self.lengths]
        self.lengths_B += 1

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add one token of every sample, [1, heads, B, D], for which there is room; returns the layer's keys and
        values."""
        kept = self.layers[layer]
        rows = torch.arange(len(self.lengths), device=key.device)
        for whole, new in zip(kept, (key, value), strict=True):
            whole[rows, :, self.lengths_B] = new[0].transpose(0, 1)
        return kept

    def seen(self, layer: int, window: int | None = None) -> torch.Tensor:
        """[B, 1, 1, C] bool: the places that a new token of each sample sees, its own included; the last `window` of
        them if the layer's attention slides."""
        key = self.layers[layer][0]
        filled = self.lengths_B[:, None] + 1
        places = torch.arange(key.shape[2], device=key.device)
        seen = places < filled
        if window is not None:
            seen &= places >= filled - window
        if layer in self.hidden:
            seen &= ~self.hidden[layer]
        return seen[:, None, None]


def _padded(rows: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    _, heads, _, width = rows.shape
    room = -(-(max(lengths) + 1) // GROW) * GROW
    padded = rows.new_zeros(len(lengths), heads, room, width)
    for b, part in enumerate(rows[0].split(list(lengths), dim=1)):
        padded[b, :, : part.shape[1]] = part
    return padded
