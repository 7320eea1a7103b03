"""Published shapes by name, so that parameters can be counted and speed measured without the weights.

LLaMA: Touvron et al. 2023, table 2; LLaMA-2 keeps 7B and 13B; Llama-3-8B from its config.json. CLIP: OpenAI's ViT-L/14.
The tiny ones are for tests and benchmarks on a CPU.
"""

import difflib
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig

LANGUAGE: dict[str, dict[str, Any]] = {
    "llama-tiny": {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    },
    "llama-7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "llama-13b": {
        "vocab_size": 32000,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "llama3-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
}
VISION: dict[str, dict[str, Any]] = {
    "clip-tiny": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
    },
    "clip-vit-l-14": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
}


def language_config(name: str) -> LlamaConfig:
    return LlamaConfig(**{"rms_norm_eps": 1e-6, **_named(name, LANGUAGE, "model.language_shape")})


def vision_config(name: str) -> CLIPVisionConfig:
    return CLIPVisionConfig(**{"image_size": 224, **_named(name, VISION, "model.vision_shape")})


def _named(name: str, shapes: dict[str, dict], key: str) -> dict:
    if name not in shapes:
        close = difflib.get_close_matches(name, shapes, n=1)
        raise ValueError(
            f"{key}: unknown shape {name!r}; known: {', '.join(shapes)}"
            + (f"; did you mean {close[0]!r}?" if close else "")
        )
    return shapes[name]
