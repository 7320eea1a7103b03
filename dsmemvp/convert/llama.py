"""LLaMA under Meta's names -> transformers' names and rotary layout.

Meta turns neighbouring pairs (2i, 2i+1) of a head, transformers pairs (i, i + half), so the rows of the query and key
projections are reordered.
"""

import re

import torch
from transformers import LlamaConfig

from dsmemvp.convert.lazy import Tensors
from dsmemvp.errors import UserError

WHOLE = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
TURNED = ("attention.wq.weight", "attention.wk.weight")


def layer_and_part(name: str) -> tuple[str | None, str]:
    """ "layers.3.attention.wq.weight" -> ("3", "attention.wq.weight"), "norm.weight" -> (None, "norm.weight")"""
    found = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    return (found[1], found[2]) if found else (None, name)


def language_tensors(published: Tensors, head_dim: int) -> Tensors:
    """Whole tensors under Meta's names -> transformers'; others are left out."""
    tensors: Tensors = {}
    for name, tensor in published.items():
        layer, part = layer_and_part(name)
        if layer is None and part in WHOLE:
            tensors[WHOLE[part]] = tensor
        elif layer is not None and part in LAYER:
            if part in TURNED:
                tensor = tensor.changed(lambda t: halves_from_pairs(t, head_dim))
            tensors[f"model.layers.{layer}.{LAYER[part]}"] = tensor
    return tensors


def halves_from_pairs(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """[heads * head_dim, d] with rotary pairs (2i, 2i+1) -> the same with pairs (i, i + head_dim / 2)."""
    rows, d = weight.shape
    return weight.view(rows // head_dim, head_dim // 2, 2, d).transpose(1, 2).reshape(rows, d)


def language_model(published: Tensors, heads: int, eps: float) -> tuple[Tensors, LlamaConfig] | None:
    """The language model of a file that says nothing of its configuration; None if it holds none. Raises UserError
    if `heads` cannot be, and for tensors in its layers that no LLaMA has."""
    if "tok_embeddings.weight" not in published:
        return None
    parts = {name: layer_and_part(name) for name in published}
    for name, (layer, part) in parts.items():
        if layer is not None and part not in LAYER and not part.endswith("rope.freqs"):
            raise UserError(f"{name} is no tensor of a LLaMA in Meta's layout")
    vocabulary, width = published["tok_embeddings.weight"].shape
    if width % heads or (width // heads) % 2:
        raise UserError(f"--language-heads: a width of {width} is no even number for each of {heads} heads")
    tensors = language_tensors(published, width // heads)
    inner, keys = (
        tensors[f"model.layers.0.{part}.weight"].shape[0] if f"model.layers.0.{part}.weight" in tensors else 0
        for part in ("mlp.gate_proj", "self_attn.k_proj")
    )
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner or 4 * width,
        num_hidden_layers=sum(name.endswith("mlp.gate_proj.weight") for name in tensors),
        num_attention_heads=heads,
        num_key_value_heads=keys // (width // heads) or heads,
        rms_norm_eps=eps,
        tie_word_embeddings="lm_head.weight" not in tensors,
    )
    return tensors, config
