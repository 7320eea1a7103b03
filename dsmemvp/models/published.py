"""Import of published weights: LLaMA in Meta's layout, CLIP in OpenAI's, and MemVP's trained tensors.

`import_published` turns one file of such tensors into Hugging Face folders for the frozen models and a safetensors file
of trained tensors, whichever of the three it holds. Files: safetensors, or .pth read in torch's weights-only mode.

Rotary layout: Meta turns neighbouring pairs (2i, 2i+1) of a head, transformers pairs (i, i + half), so the rows of the
query and key projections are reordered.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig

Tensors = dict[str, torch.Tensor]

_LLAMA = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
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
_CLIP = {
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
_TRAINED = {
    "adapter_emb1": "method.key_positions",
    "adapter_emb2": "method.value_positions",
    "adapter_proj.": "method.projector.",
}
_DEAD = ("adapter_modality_embedding.weight",)
"""Stored in published checkpoints but used by no forward pass."""


def read_published(path: Path) -> Tensors:
    """All tensors of a file, without the wrappers' prefixes ("module.", and "w." of the reference recording). Raises
    FileNotFoundError or ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            if any(name.startswith("w.") for name in tensors):
                tensors = {n: t for n, t in tensors.items() if n.startswith("w.")}
        else:
            # published checkpoints hold their command line beside the tensors
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            tensors = content.get("model", content)
    except (SafetensorError, RuntimeError, AttributeError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as weights ({str(error).splitlines()[0]})") from None
    except Exception as error:  # torch's weights-only unpickler raises pickle.UnpicklingError for anything else
        raise ValueError(f"{path} holds more than tensors and is refused ({str(error).splitlines()[0]})") from None
    return {name.removeprefix("module.").removeprefix("w."): t for name, t in tensors.items()}


def language_weights(published: Tensors, heads: int) -> Tensors:
    """Meta's LLaMA -> transformers' names and rotary layout; empty where the file has no language model."""
    weights: Tensors = {}
    if "tok_embeddings.weight" not in published:
        return weights
    head_dim = published["tok_embeddings.weight"].shape[1] // heads
    for name, tensor in published.items():
        layer = re.match(r"layers\.(\d+)\.(.+)", name)
        part = layer[2] if layer else name
        if part not in _LLAMA:
            continue
        if part in ("attention.wq.weight", "attention.wk.weight"):
            tensor = halves_from_pairs(tensor, head_dim)
        weights[f"model.layers.{layer[1]}.{_LLAMA[part]}" if layer else _LLAMA[part]] = tensor.contiguous()
    return weights


def halves_from_pairs(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """[heads * head_dim, d] with rotary pairs (2i, 2i+1) -> the same with pairs (i, i + head_dim / 2)."""
    rows, d = weight.shape
    return weight.view(rows // head_dim, head_dim // 2, 2, d).transpose(1, 2).reshape(rows, d)


def vision_weights(published: Tensors) -> Tensors:
    """OpenAI's CLIP vision tower -> transformers' names, adapters left out; empty where there is none."""
    weights: Tensors = {}
    for name, tensor in published.items():
        name, found = re.subn(r"^(backbone\.)?visual\.", "", name)
        if not found or "adapter" in name or name == "proj":
            continue
        name = name.replace("transformer.resblocks.", "encoder.layers.")
        for theirs, ours in _CLIP.items():
            name = re.sub(rf"(^|\.){re.escape(theirs)}(?=$|\.)", rf"\g<1>{ours}", name)
        packed = re.match(r"(.+)\.attn\.in_proj_(weight|bias)$", name)
        if packed:
            for letter, piece in zip("qkv", tensor.chunk(3), strict=True):
                weights[f"{packed[1]}.self_attn.{letter}_proj.{packed[2]}"] = piece.contiguous()
        else:
            weights[name] = tensor.contiguous()
    return weights


def trained_weights(published: Tensors) -> Tensors:
    """MemVP's trained tensors -> this package's names. Tensors that take part in no forward pass are left out: the
    modality embedding and the last vision block's adapter."""
    blocks = [int(m[1]) for name in published if (m := re.search(r"visual\.transformer\.resblocks\.(\d+)\.", name))]
    weights: Tensors = {}
    for name, tensor in published.items():
        adapter = re.search(r"visual\.transformer\.resblocks\.(\d+)\.adapter_mlp\.fc([12])\.weight$", name)
        start = next((s for s in _TRAINED if name.startswith(s)), None)
        if adapter and int(adapter[1]) < max(blocks):
            weights[f"vision.layers.{adapter[1]}.adapter.{('down', 'up')[int(adapter[2]) - 1]}.weight"] = tensor
        elif start:
            squeezed = tensor[0] if tensor.dim() == 3 else tensor  # positions are stored as [1, N, d]
            weights[_TRAINED[start] + name[len(start) :]] = squeezed
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def language_config_of(weights: Tensors, heads: int, eps: float) -> LlamaConfig:
    """The configuration that fits converted language weights."""
    vocabulary, width = weights["model.embed_tokens.weight"].shape
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=weights["model.layers.0.mlp.gate_proj.weight"].shape[0],
        num_hidden_layers=sum(name.endswith("mlp.gate_proj.weight") for name in weights),
        num_attention_heads=heads,
        num_key_value_heads=weights["model.layers.0.self_attn.k_proj.weight"].shape[0] // (width // heads),
        rms_norm_eps=eps,
    )


def vision_config_of(weights: Tensors, heads: int) -> CLIPVisionConfig:
    """The configuration that fits converted vision weights (QuickGELU, as OpenAI's)."""
    width, _, patch, _ = weights["embeddings.patch_embedding.weight"].shape
    side = round((weights["embeddings.position_embedding.weight"].shape[0] - 1) ** 0.5)
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=weights["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=sum(name.endswith("mlp.fc1.weight") for name in weights),
        num_attention_heads=heads,
        image_size=side * patch,
        patch_size=patch,
        hidden_act="quick_gelu",
    )


def import_published(source: Path, out: Path, language_heads: int, vision_heads: int, eps: float) -> list[str]:
    """Write what `source` holds below `out`; returns a line about each part. Raises ValueError where it holds none."""
    published = read_published(source)
    language, vision = language_weights(published, language_heads), vision_weights(published)
    trained = trained_weights(published)
    if not (language or vision or trained):
        raise ValueError(f"{source} holds no LLaMA, CLIP or MemVP tensors under their published names")
    said = []
    if language:
        _write_folder(out / "language_model", language, language_config_of(language, language_heads, eps).to_dict())
        said.append(f"{len(language)} tensors of the language model -> {out / 'language_model'}")
    if vision:
        _write_folder(out / "vision_tower", vision, vision_config_of(vision, vision_heads).to_dict())
        said.append(f"{len(vision)} tensors of the vision tower -> {out / 'vision_tower'}")
    if trained:
        out.mkdir(parents=True, exist_ok=True)
        save_file(trained, out / "trained.safetensors")
        said.append(f"{len(trained)} trained tensors -> {out / 'trained.safetensors'}")
    dead = [name for name in published if name in _DEAD]
    return said + [f"left out, since no forward pass uses it: {name}" for name in dead]


def _write_folder(folder: Path, weights: Tensors, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str) + "\n", encoding="utf-8")
