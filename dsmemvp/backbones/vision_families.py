"""The vision towers by the `model_type` of their config.json: the classes of transformers that each is made of, and
under which names it keeps them.

CLIP is used as MemVP was published: up to its penultimate block, class token dropped, post_layernorm on the patches.
SigLIP has no class token, DINOv2 a class token and, in one variant, register tokens, which are dropped; of both the
last block is the last one here too.

I images, N positions, P patches, v width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    SiglipConfig,
    SiglipVisionConfig,
    ViTConfig,
)
from transformers.models.clip.modeling_clip import CLIPEncoderLayer, CLIPVisionEmbeddings
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings, Dinov2Layer
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
    Dinov2WithRegistersEmbeddings,
    Dinov2WithRegistersLayer,
)
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer, SiglipVisionEmbeddings
from transformers.models.vit.modeling_vit import ViTEmbeddings, ViTLayer

from dsmemvp.backbones.text_encoder import without_dropout
from dsmemvp.errors import UserError


class _ClipEmbeddings(CLIPVisionEmbeddings):
    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return _positions(self, height, width)


class _SiglipEmbeddings(SiglipVisionEmbeddings):
    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return _positions(self, height, width)


def _positions(embeddings: Any, height: int, width: int) -> torch.Tensor:
    """[1, N, v] for images of height x width, as transformers interpolates them, but read through the table's own
    forward: under ZeRO-3 its weight is whole just there. A class token keeps its own."""
    stored_1Nv = embeddings.position_embedding(embeddings.position_ids)
    side = int(stored_1Nv.shape[1] ** 0.5)
    wanted = (height // embeddings.patch_size, width // embeddings.patch_size)
    if wanted == (side, side):
        return stored_1Nv
    first_1v, patches_1Pv = stored_1Nv.split([stored_1Nv.shape[1] - side**2, side**2], dim=1)
    grid = patches_1Pv.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=wanted, mode="bicubic", align_corners=False)
    return torch.cat((first_1v, grid.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)


@dataclass(frozen=True)
class VisionFamily:
    config: type[Any]
    embeddings: Callable[[Any], nn.Module]
    block: Callable[[Any], nn.Module]
    """A layer whose parts are taken over, under the following names and `mlp`."""
    statistics: str
    """The pixels' mean and deviation that it was trained with (data/images.py); for CLIP, the published runs'."""
    with_text: type[Any] | None = None
    """The configuration of a whole model with a text tower, of which this is the `vision_config`."""
    attention: str = "self_attn"
    norms: tuple[str, str] = ("layer_norm1", "layer_norm2")
    scales: tuple[str, ...] = ()
    """On what attention and feed-forward add to the hidden states."""
    first_norm: str | None = None
    last_norm: str = "post_layernorm"
    unused_blocks: int = 0
    """The last ones, which are neither built nor loaded."""
    interpolating: Mapping[str, bool] = field(default_factory=dict)
    """Arguments of the embeddings' forward."""
    class_tokens: int = 0
    """Before the patches; register tokens beside."""
    not_loaded: tuple[str, ...] = ()
    """Beginnings of names in its files: a text tower beside it, a head, what only its training needed."""
    stored_names: Mapping[str, str] = field(default_factory=dict)
    """Parts of names in its files -> parts of the names here."""
    stored_halves: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Likewise, of tensors that are stored as one: the first and the second half of their rows."""

    def dropped(self, config: Any) -> int:
        """Tokens before the patches."""
        return self.class_tokens + getattr(config, "num_register_tokens", 0)


_INTERPOLATING = {"interpolate_pos_encoding": True}
_ENCODER = {"vision_model.": "", "encoder.layers.": "layers."}
_TEXT = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
_DINOV2: dict[str, Any] = {"statistics": "imagenet", "attention": "attention", "norms": ("norm1", "norm2")}
_DINOV2 |= {
    "not_loaded": ("embeddings.mask_token",),
    "stored_names": {
        "encoder.layer.": "layers.",
        ".attention.attention.query.": ".attention.q_proj.",
        ".attention.attention.key.": ".attention.k_proj.",
        ".attention.attention.value.": ".attention.v_proj.",
        ".attention.output.dense.": ".attention.o_proj.",
        ".mlp.weights_out.": ".mlp.down_proj.",
    },
    "stored_halves": {".mlp.weights_in.": (".mlp.gate_proj.", ".mlp.up_proj.")},
}
_DINOV2 |= {"scales": ("layer_scale1", "layer_scale2"), "last_norm": "layernorm", "class_tokens": 1}
TOWERS = {
    "clip_vision_model": VisionFamily(
        CLIPVisionConfig,
        _ClipEmbeddings,
        CLIPEncoderLayer,
        "imagenet",
        CLIPConfig,
        first_norm="pre_layrnorm",
        unused_blocks=1,
        interpolating=_INTERPOLATING,
        class_tokens=1,
        not_loaded=_TEXT,
        stored_names=_ENCODER,
    ),
    "siglip_vision_model": VisionFamily(
        SiglipVisionConfig,
        _SiglipEmbeddings,
        SiglipEncoderLayer,
        "half",
        SiglipConfig,
        interpolating=_INTERPOLATING,
        not_loaded=(*_TEXT, "head.", "vision_model.head."),
        stored_names=_ENCODER,
    ),
    "dinov2": VisionFamily(Dinov2Config, Dinov2Embeddings, Dinov2Layer, **_DINOV2),
    "dinov2_with_registers": VisionFamily(
        Dinov2WithRegistersConfig, Dinov2WithRegistersEmbeddings, Dinov2WithRegistersLayer, **_DINOV2
    ),
    "vit": VisionFamily(
        ViTConfig,
        lambda config: ViTEmbeddings(without_dropout(config)),
        lambda config: ViTLayer(without_dropout(config)),
        "half",
        attention="attention",
        norms=("layernorm_before", "layernorm_after"),
        last_norm="layernorm",
        interpolating=_INTERPOLATING,
        class_tokens=1,
        not_loaded=("pooler.", "classifier.", "vit.pooler.", "embeddings.mask_token", "vit.embeddings.mask_token"),
        stored_names={
            "vit.": "",
            "encoder.layer.": "layers.",
            ".attention.attention.query.": ".attention.q_proj.",
            ".attention.attention.key.": ".attention.k_proj.",
            ".attention.attention.value.": ".attention.v_proj.",
            ".attention.output.dense.": ".attention.o_proj.",
            ".intermediate.dense.": ".mlp.fc1.",
            ".output.dense.": ".mlp.fc2.",
        },
    ),
}


def vision_family(config: Any) -> VisionFamily:
    """Raises UserError for a model_type that is not known."""
    if config.model_type not in TOWERS:
        raise UserError(
            f"model.vision_tower: its config.json is of a {config.model_type!r} model; known: {', '.join(TOWERS)}"
        )
    return TOWERS[config.model_type]


def built_blocks(config: Any, block: int = 0) -> int:
    """How many blocks a tower has whose features come from `block`, counted from its last as -1; 0: the family's own.
    Raises UserError for one that is not there."""
    if block == 0:
        return config.num_hidden_layers - vision_family(config).unused_blocks
    if block + config.num_hidden_layers < 0:
        raise UserError(
            f"method: block {block} of the vision tower, counted from its last, is not there; it has"
            f" {config.num_hidden_layers}"
        )
    return config.num_hidden_layers + block + 1


def square(side: object) -> int:
    """A configuration's size that must be one number. Raises UserError."""
    if not isinstance(side, int):
        raise UserError(f"model.vision_tower: a size of {side}; only square images are supported")
    return side
