"""A GGUF file of the LLaMA architecture -> transformers' names, configuration and tokenizer.

llama.cpp keeps query and key projections in Meta's rotary layout, neighbouring pairs, as llama.py describes it.
"""

import re
from typing import Any

from transformers import LlamaConfig

from dsmemvp.convert.gguf_file import Gguf
from dsmemvp.convert.lazy import Tensors
from dsmemvp.convert.llama import halves_from_pairs
from dsmemvp.errors import UserError

ARCHITECTURE = "llama"
WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TURNED = ("attn_q", "attn_k")
NUMBERS = ("embedding_length", "feed_forward_length", "block_count", "attention.head_count", "context_length")
"""Whole numbers that a file must hold."""


def gguf_language_model(file: Gguf) -> tuple[Tensors, LlamaConfig]:
    """Raises UserError for another architecture, and for what LlamaForCausalLM does not compute."""
    config = _config(file)
    head_dim = config.head_dim or 0
    tensors: Tensors = {}
    for name, tensor in file.tensors.items():
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        if name in WHOLE:
            tensors[WHOLE[name]] = tensor
        elif layer and layer[2] in LAYER:
            if layer[2] in TURNED:
                tensor = tensor.changed(lambda t: halves_from_pairs(t, head_dim))
            tensors[f"model.layers.{layer[1]}.{LAYER[layer[2]]}.weight"] = tensor
        else:
            raise UserError(
                f"{file.path}: {name} is no tensor of a plain LLaMA (dense, without biases and scaled RoPE)"
            )
    return tensors, config


def _config(file: Gguf) -> LlamaConfig:
    settings, path = file.settings, file.path
    architecture = settings.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise UserError(f"{path} is of a {architecture!r:.40} model; of GGUF files those of 'llama' are read")

    def setting(name: str, default: Any = None) -> Any:
        return settings.get(f"{ARCHITECTURE}.{name}", default)

    if setting("rope.scaling.type", "none") != "none" or setting("expert_count", 0):
        raise UserError(f"{path}: a model with scaled RoPE or experts is not read from GGUF; take its safetensors")
    for name in NUMBERS:
        if type(setting(name)) is not int or setting(name) < 1:
            raise UserError(f"{path} is damaged: {ARCHITECTURE}.{name} is {setting(name)!r:.40}")
    width, heads = setting("embedding_length"), setting("attention.head_count")
    head_dim = setting("attention.key_length") or setting("rope.dimension_count") or width // heads
    if "token_embd.weight" not in file.tensors or type(head_dim) is not int or head_dim < 2 or head_dim % 2:
        raise UserError(
            f"{path} is not whole: it has no token_embd.weight, or heads of no even width ({head_dim!r:.40})"
        )
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        hidden_size=width,
        intermediate_size=setting("feed_forward_length"),
        num_hidden_layers=setting("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=setting("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=setting("context_length"),
        # a float32 in the file: 1e-5 stands there as 9.999999747e-06
        rms_norm_eps=float(f"{setting('attention.layer_norm_rms_epsilon', 1e-6):.6g}"),
        rope_parameters={"rope_type": "default", "rope_theta": float(setting("rope.freq_base", 10000.0))},
        bos_token_id=settings.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=settings.get("tokenizer.ggml.eos_token_id"),
        tie_word_embeddings="output.weight" not in file.tensors,
    )
