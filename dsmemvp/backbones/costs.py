"""Estimate what samples cost, from the sizes of the two models: for balancing work over ranks.

Counted are multiplications of one training step. A frozen linear layer is run forward and once backward (no weight
gradient), attention forward and twice backward; a vision tower without adapters forward alone. Recomputation adds to
both alike and is left out, as are the method's own layers and the head, which runs at supervised tokens alone.
"""

from typing import Any

from dsmemvp.backbones.block_costs import attention_sizes
from dsmemvp.backbones.vision_families import vision_family
from dsmemvp.data.balancing import CostModel

LITTLE = 1e-4
"""Of an image, what a token costs where the language model does not run: the method's own text encoder is small."""


def cost_model(
    language: Any, vision: Any, sees_images: bool = True, resolution: int = 0, adapters: bool = True
) -> CostModel:
    """`language` and `vision` are transformers' configurations; `resolution` is the images' (0: the tower's own), and
    `adapters` says whether the tower's blocks have any. One token outside of attention costs 1. Without a language
    model (None) an image costs 1, and a sample next to nothing by its text."""
    if language is None:
        return CostModel(LITTLE, 0.0, float(sees_images))
    depth = language.num_hidden_layers
    width, heads, shared, head = attention_sizes(language)
    linear = 2 * width * head * (heads + shared) + 3 * width * language.intermediate_size
    per_token = 2 * depth * linear
    per_pair = 3 * depth * 2 * heads * head / 2  # scores and mixing; a token looks at half of all on average
    per_image = _image(vision, resolution or vision.image_size, adapters) if sees_images else 0
    return CostModel(1.0, per_pair / per_token, per_image / per_token)


def _image(vision: Any, resolution: int, adapters: bool) -> float:
    family = vision_family(vision)
    width, depth = vision.hidden_size, vision.num_hidden_layers - family.unused_blocks
    inner = getattr(vision, "intermediate_size", None) or int(vision.mlp_ratio * width)
    tokens = (resolution // vision.patch_size) ** 2 + family.dropped(vision)
    linear = 4 * width * width + 2 * width * inner
    linears, attentions = (2, 3) if adapters else (1, 1)
    return depth * (linears * tokens * linear + attentions * tokens**2 * 2 * width)
