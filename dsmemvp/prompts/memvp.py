"""MemVP: image features as key/value slots beside every feed-forward layer (Jie et al., ICML 2024, arXiv 2405.05615).

    M = pad(g * lambda * f(z), N)      K = M + p_k      V = M + p_v
    FFN'(x) = FFN(x) + s * dropout(silu(x K^T)) V

z image features, f the projector, g whether the sample has an image, N slots of which the first P carry the image and
the rest are purely learned, p_k and p_v learned positions, lambda and s fixed scales. One (K, V) serves all layers.

B samples, L places, N slots, d width, I images, P image tokens, v vision width.
"""

import torch
from pydantic.dataclasses import dataclass
from torch import nn
from torch.nn import functional as F

from dsmemvp.config.fields import CONFIG, Factor, Fraction, Width
from dsmemvp.config.methods import MethodSettings
from dsmemvp.data.batch import Batch
from dsmemvp.errors import UserError
from dsmemvp.prompts.interface import Sizes, State, VisualPrompt
from dsmemvp.prompts.parts.projector import Projector


@dataclass(config=CONFIG)
class Settings(MethodSettings):
    hidden: Width = 128
    """Hidden width of the projector from image features to the language model's width."""
    slots: Width = 320
    """Key/value slots; those beyond the image tokens are purely learned."""
    visual_scale: Factor = 0.01
    """Factor on the projected image features inside keys and values (lambda)."""
    output_scale: Factor = 0.1
    """Factor on the output of the memory branch (s)."""
    dropout: Fraction = 0.1
    """Dropout on the slot activations."""


class MemVP(VisualPrompt):
    sees_images = True

    def __init__(self, sizes: Sizes, hidden: int, slots: int, visual_scale: float, output_scale: float, dropout: float):
        """`slots` is N; raises UserError where it does not hold the image tokens."""
        super().__init__()
        if slots < sizes.image_tokens:
            raise UserError(
                f"method.slots: {slots} slots cannot hold the {sizes.image_tokens} image tokens of the vision tower"
            )
        self.projector = Projector(sizes.vision_width, hidden, sizes.language_width)
        # p_k ~ N(0, 0.02^2) and p_v = 0, so that a sample without image starts from the unchanged model
        self.key_positions = nn.Parameter(torch.empty(slots, sizes.language_width).normal_(std=0.02))
        self.value_positions = nn.Parameter(torch.zeros(slots, sizes.language_width))
        self.visual_scale, self.output_scale, self.dropout = visual_scale, output_scale, dropout

    def forward(self, features: torch.Tensor | None, batch: Batch) -> State:
        """-> (K, V in float32, which gather the gradient, and K, V in the compute type, to multiply), [B, N, d]."""
        assert features is not None
        visual_IPd = self.projector(features).float() * self.visual_scale
        has_image_B = batch.image_of >= 0
        # a sample without image reads any row, times zero
        visual_BPd = visual_IPd[batch.image_of.clamp(min=0)] * has_image_B[:, None, None]
        rest = self.key_positions.shape[0] - visual_BPd.shape[1]
        memory_BNd = F.pad(visual_BPd, (0, 0, 0, rest))
        key, value = (memory_BNd + p.float() for p in (self.key_positions, self.value_positions))
        return key, value, key.detach().to(features.dtype), value.detach().to(features.dtype)

    def for_later_steps(self, state: State) -> State:
        """The 16-bit memory alone: decoding has no gradient to gather."""
        return (*state[2:], *state[2:])

    def feed_forward(self, layer: int, x_BLd: torch.Tensor, state: State) -> torch.Tensor | None:
        key_BNd, value_BNd = _SharedMemory.apply(*state)
        active_BLN = slot_activations(x_BLd, key_BNd)
        active_BLN = F.dropout(active_BLN, self.dropout, self.training)
        return self.output_scale * (active_BLN @ value_BNd)


def slot_activations(x_BLd: torch.Tensor, key_BNd: torch.Tensor) -> torch.Tensor:
    """How strongly each slot fires: silu(x K^T), [B, L, N]."""
    return F.silu(x_BLd @ key_BNd.transpose(1, 2))


class _SharedMemory(torch.autograd.Function):
    """The 16-bit memory for one layer, whose gradient goes to the float32 memory: over 32 or 40 layers it is summed in
    float32, and no layer keeps a copy of its own."""

    @staticmethod
    def forward(key32, value32, key16, value16):
        return key16.view_as(key16), value16.view_as(value16)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, key_gradient, value_gradient):
        return key_gradient.float(), value_gradient.float(), None, None
