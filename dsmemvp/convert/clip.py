"""OpenAI's CLIP vision tower -> transformers' names and configuration. The text tower and the final projection, which
no recipe uses, are left out."""

import re

from transformers import CLIPVisionConfig

from dsmemvp.convert.lazy import LazyTensor, Tensors
from dsmemvp.errors import UserError

HEAD_WIDTH = 64
"""OpenAI's towers have as many heads as this goes into their width (clip/model.py, build_model)."""
NAMES = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

NEEDED = (NAMES["conv1.weight"], NAMES["positional_embedding"], "encoder.layers.0.mlp.fc1.weight")
"""What the configuration follows from."""


def vision_tensors(published: Tensors) -> Tensors:
    """The tower under transformers' names, adapters left out; empty if there is none."""
    tensors: Tensors = {}
    for name, tensor in published.items():
        name, found = re.subn(r"^(backbone\.)?visual\.", "", name)
        if not found or "adapter" in name or name == "proj" or not tensor.shape:
            continue
        name = name.replace("transformer.resblocks.", "encoder.layers.")
        for theirs, ours in NAMES.items():
            name = re.sub(rf"(^|\.){re.escape(theirs)}(?=$|\.)", rf"\g<1>{ours}", name)
        packed = re.match(r"(.+)\.attn\.in_proj_(weight|bias)$", name)
        if packed:
            for i, letter in enumerate("qkv"):
                tensors[f"{packed[1]}.self_attn.{letter}_proj.{packed[2]}"] = _third(tensor, i)
        else:
            tensors[name] = tensor
    return tensors


def _third(packed: LazyTensor, i: int) -> LazyTensor:
    rows = packed.shape[0] // 3
    return packed.changed(lambda t: t[i * rows : (i + 1) * rows], (rows, *packed.shape[1:]))


def vision_tower(published: Tensors, heads: int) -> tuple[Tensors, CLIPVisionConfig] | None:
    """`heads` 0: as many as OpenAI's have. None if the file has no tower, as one with the trained adapters alone.
    Raises UserError for a tower that is no ViT."""
    tensors = vision_tensors(published)
    if not tensors:
        return None
    patches, positions, inner = (tensors.get(name) for name in NEEDED)
    if not (patches and positions and inner and len(patches.shape) == 4):
        raise UserError(f"the vision tower is no CLIP ViT: {', '.join(NEEDED)} do not all follow from its names")
    width, _, patch, _ = patches.shape
    heads = heads or max(1, width // HEAD_WIDTH)
    if width % heads:
        raise UserError(f"--vision-heads: a width of {width} is no multiple of {heads} heads")
    side = round((positions.shape[0] - 1) ** 0.5)
    config = CLIPVisionConfig(
        architectures=["CLIPVisionModel"],
        hidden_size=width,
        intermediate_size=inner.shape[0],
        num_hidden_layers=sum(name.endswith("mlp.fc1.weight") for name in tensors),
        num_attention_heads=heads,
        image_size=side * patch,
        patch_size=patch,
        hidden_act="quick_gelu",
    )
    return tensors, config
