"""What a visual prompting method may do, and the method that does nothing.

The decoder is a sequence of layers which call the method at the points below. State travels as an argument: the tuple
of tensors that `forward` returns reaches every later point unchanged, through gradient checkpointing and ZeRO-3 alike.
Parameters belong to the method or to modules inside it, and a module's tensors are used in that module's own forward
only (under ZeRO-3 a parameter is whole just there).

B samples, L places, d width of the language model, I images, P image tokens, v width of the vision tower.
"""

from dataclasses import dataclass

import torch
from torch import nn

from dsmemvp.data.batch import Batch

State = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Sizes:
    """What a method must know of the two frozen models."""

    image_tokens: int
    vision_width: int
    language_width: int


class VisualPrompt(nn.Module):
    """No method: the language model alone. Methods override the points they use."""

    sees_images = False
    """Whether the vision tower is run at all."""
    slots = 0
    """Places reserved in the sequence of a sample with an image, after BOS."""

    def forward(self, features: torch.Tensor | None, batch: Batch) -> State:
        """Once per forward: what all layers share. `features` [max(I, 1), P, v]; where the batch has no image it is
        one dummy row that must enter the graph with weight zero. Made from one sample with an image, it also serves
        a batch of any size whose samples all look at that image."""
        return ()

    def for_later_steps(self, state: State) -> State:
        """What decoding needs of the state after its first step, when a batch holds one new token per sample and
        neither images nor slots."""
        return state

    def enter_layer(self, layer: int, hidden_BLd: torch.Tensor, state: State, batch: Batch) -> torch.Tensor:
        """The hidden states on entering a layer."""
        return hidden_BLd

    def feed_forward(self, layer: int, x_BLd: torch.Tensor, state: State) -> torch.Tensor | None:
        """What is added to a layer's feed-forward output; `x_BLd` is the feed-forward's normed input."""
        return None

    def replacement(self, name: str, linear: nn.Linear) -> nn.Linear | None:
        """Another layer in place of a linear layer of the decoder, such as one with LoRA; None keeps it. Called while
        the model is built; `name` is its name inside the layer ("q_proj"). The new layer must own the old weight."""
        return None
