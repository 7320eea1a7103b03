"""Meta's params.json -> transformers' configuration of the same LLaMA."""

from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from dsmemvp.errors import UserError
from dsmemvp.json_text import read_json

NUMBER = (int, float)
OPTIONAL: dict[str, Any] = {"n_kv_heads": int, "multiple_of": int, "ffn_dim_multiplier": NUMBER, "rope_theta": NUMBER}
OPTIONAL |= {"rope_scaling_factor": NUMBER, "use_scaled_rope": int}
"""Keys that not every model has, and what their values are."""


def read_params(path: Path) -> dict[str, Any]:
    """Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; it lies beside consolidated.00.pth in Meta's downloads")
    try:
        params = read_json(path)
        params = params.get("model", params)
        sizes = [params[key] for key in ("dim", "n_layers", "n_heads")]
        if not all(isinstance(n, int) and n > 0 for n in sizes) or params["dim"] % (2 * params["n_heads"]):
            raise UserError(f"dim, n_layers, n_heads = {sizes} are no sizes of a LLaMA")
        float(params["norm_eps"])
        for key, kind in OPTIONAL.items():
            if params.get(key) is not None and not isinstance(params[key], kind):
                raise UserError(f"{key} is {params[key]!r}")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not Meta's params.json ({error!r})") from None
    return params


def language_config(params: dict[str, Any], vocabulary: int, tied: bool) -> LlamaConfig:
    """params.json -> transformers' configuration. Key names are those of Meta's ModelArgs; what they leave out (places,
    scaling of the rotary angles, special tokens) is as in the config.json of the models on Hugging Face."""
    dim, heads, theta = params["dim"], params["n_heads"], float(params.get("rope_theta") or 10000.0)
    eps = float(params["norm_eps"])
    multiple = params.get("multiple_of") or 256
    inner = int((params.get("ffn_dim_multiplier") or 1) * int(8 * dim / 3))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if params.get("use_scaled_rope"):
        # Llama 3.1 scales by 8, the tied models of 3.2 by 32; the other numbers are the same
        factor = float(params.get("rope_scaling_factor") or (32.0 if tied else 8.0))
        rope |= {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope["original_max_position_embeddings"] = 8192
        places = 131072
    elif theta >= 5e5:
        places = 8192 if theta == 5e5 else 16384  # Llama 3, Code Llama
    else:
        places = 2048 if eps < 1e-5 else 4096  # LLaMA-1 (65B has LLaMA-2's epsilon), LLaMA-2; nothing depends on it
    bos, eos = (128000, 128001) if vocabulary >= 128256 else (1, 2)
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=vocabulary,
        hidden_size=dim,
        intermediate_size=-(-inner // multiple) * multiple,
        num_hidden_layers=params["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=params.get("n_kv_heads") or heads,
        max_position_embeddings=places,
        rms_norm_eps=eps,
        rope_parameters=rope,
        tie_word_embeddings=tied,
        bos_token_id=bos,
        eos_token_id=eos,
    )
