"""Published shapes by name, so that parameters can be counted and speed measured without the weights.

LLaMA: Touvron et al. 2023, table 2 (its 33B is the folder 30B); LLaMA-2 and 3, Mistral, Qwen2.5 and Qwen3: their
config.json. CLIP: OpenAI's ViT-L/14 and B/16. SigLIP, DINOv2, BERT and ViT: their config.json.
The tiny ones are for tests and benchmarks on a CPU.
"""

import difflib
from typing import Any

from dsmemvp.backbones.families import DECODERS
from dsmemvp.backbones.text_encoder import ENCODERS
from dsmemvp.backbones.vision_families import TOWERS
from dsmemvp.config.yaml_text import shown
from dsmemvp.errors import UserError


def _llama(layers: int, width: int, heads: int, feed_forward: int, **more: Any) -> dict[str, Any]:
    """LLaMA and LLaMA-2, unless `more` says otherwise."""
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    return {"vocab_size": 32000, "rms_norm_eps": 1e-6, **sizes, "intermediate_size": feed_forward, **more}


LLAMA_2: dict[str, Any] = {"rms_norm_eps": 1e-5}
LLAMA_3: dict[str, Any] = {
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "num_key_value_heads": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
LANGUAGE: dict[str, dict[str, Any]] = {
    "llama-tiny": _llama(4, 128, 4, 352, vocab_size=512),
    "llama-7b": _llama(32, 4096, 32, 11008),
    "llama-13b": _llama(40, 5120, 40, 13824),
    "llama-30b": _llama(60, 6656, 52, 17920),
    "llama-65b": _llama(80, 8192, 64, 22016, rms_norm_eps=1e-5),
    "llama-2-7b": _llama(32, 4096, 32, 11008, **LLAMA_2),
    "llama-2-13b": _llama(40, 5120, 40, 13824, **LLAMA_2),
    "llama-2-70b": _llama(80, 8192, 64, 28672, num_key_value_heads=8, **LLAMA_2),
    "llama-3-8b": _llama(32, 4096, 32, 14336, **LLAMA_3),
    "llama-3-70b": _llama(80, 8192, 64, 28672, **LLAMA_3),
}
LANGUAGE |= {
    # version 0.3; 0.1 has 32000 tokens and a sliding window of 4096
    "mistral-7b": _llama(
        *(32, 4096, 32, 14336),
        model_type="mistral",
        vocab_size=32768,
        num_key_value_heads=8,
        rms_norm_eps=1e-5,
        sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
    "qwen2.5-7b": _llama(
        *(28, 3584, 28, 18944),
        model_type="qwen2",
        vocab_size=152064,
        num_key_value_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
    "qwen3-8b": _llama(
        *(36, 4096, 32, 12288),
        model_type="qwen3",
        vocab_size=151936,
        num_key_value_heads=8,
        head_dim=128,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
}
LANGUAGE["bert-base"] = {"model_type": "bert"}
LANGUAGE["bert-tiny"] = {
    "model_type": "bert",
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
    "initializer_range": 0.07,  # BERT's 0.02 at its width; with less a post-norm layer this narrow adds nothing
}
LANGUAGE["llama3-8b"] = LANGUAGE["llama-3-8b"]  # its name in exported folders of before
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
    "clip-vit-b-16": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 16,
    },
    "vit-b-16": {"model_type": "vit"},
    "siglip-b-16": {"model_type": "siglip_vision_model", "patch_size": 16},
    "siglip-so400m-14-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
    "dinov2-l-14": {
        "model_type": "dinov2",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 518,
        "patch_size": 14,
    },
}


def language_config(name: str) -> Any:
    sizes = {"model_type": "llama", **_named(name, LANGUAGE, "model.language_shape")}
    kind = sizes.pop("model_type")
    return ENCODERS[kind](**sizes) if kind in ENCODERS else DECODERS[kind].config(**sizes)


def vision_config(name: str) -> Any:
    sizes = {"model_type": "clip_vision_model", "image_size": 224, **_named(name, VISION, "model.vision_shape")}
    return TOWERS[sizes.pop("model_type")].config(**sizes)


def _named(name: str, shapes: dict[str, dict], key: str) -> dict:
    if name not in shapes:
        close = difflib.get_close_matches(name, shapes, n=1)
        raise UserError(
            f"{key}: unknown shape {shown(name)}; known: {', '.join(shapes)}"
            + (f"; did you mean {close[0]!r}?" if close else "")
        )
    return shapes[name]
