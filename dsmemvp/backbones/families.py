"""The classes of transformers that a tower is made of, by the `model_type` of its config.json.

A decoder family whose blocks have LLaMA's parts (input_layernorm, self_attn, post_attention_layernorm, mlp) is one
line.
"""

from dataclasses import dataclass
from typing import Any

from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from dsmemvp.errors import UserError


@dataclass(frozen=True)
class DecoderFamily:
    config: type[Any]
    block: type[Any]
    norm: type[Any]
    rotary: type[Any]


DECODERS = {
    "llama": DecoderFamily(
        LlamaConfig,
        modeling_llama.LlamaDecoderLayer,
        modeling_llama.LlamaRMSNorm,
        modeling_llama.LlamaRotaryEmbedding,
    ),
    "mistral": DecoderFamily(
        MistralConfig,
        modeling_mistral.MistralDecoderLayer,
        modeling_mistral.MistralRMSNorm,
        modeling_mistral.MistralRotaryEmbedding,
    ),
    "qwen2": DecoderFamily(
        Qwen2Config,
        modeling_qwen2.Qwen2DecoderLayer,
        modeling_qwen2.Qwen2RMSNorm,
        modeling_qwen2.Qwen2RotaryEmbedding,
    ),
    "qwen3": DecoderFamily(
        Qwen3Config,
        modeling_qwen3.Qwen3DecoderLayer,
        modeling_qwen3.Qwen3RMSNorm,
        modeling_qwen3.Qwen3RotaryEmbedding,
    ),
}


def decoder_family(config: Any) -> DecoderFamily:
    """Raises UserError for a model_type that is not known."""
    if config.model_type not in DECODERS:
        raise UserError(
            f"model.language_model: its config.json is of a {config.model_type!r} model; known: {', '.join(DECODERS)}"
        )
    return DECODERS[config.model_type]


def check_window(config: Any, text: int, places: int = 0) -> None:
    """Attention reads the whole text, which is what transformers does within an active sliding window. Raises UserError
    if sequences of `text` tokens and `places` reserved places are longer than that."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        return
    if text + places > window:
        beside = f" and {places} places of the method" if places else ""
        raise UserError(
            f"data.max_length: {text} tokens{beside} are more than the language model's sliding window of {window},"
            " beyond which attention is not computed as the model was trained; take a smaller one"
        )
