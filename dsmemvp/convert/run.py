"""`dsmemvp convert`: what a source holds, found by its names, checked against transformers' own models, written."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from transformers import CLIPVisionModel, LlamaForCausalLM, PretrainedConfig

from dsmemvp.convert.clip import vision_tower
from dsmemvp.convert.files import tensors_in
from dsmemvp.convert.lazy import Tensors
from dsmemvp.convert.llama import language_model
from dsmemvp.convert.memvp import DEAD, trained_tensors
from dsmemvp.convert.meta import is_meta_folder, meta_language_model, tokenizer_of
from dsmemvp.convert.writing import write_model
from dsmemvp.data.durable import replace_file
from dsmemvp.models.safetensors_file import some

DTYPES = {"keep": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LANGUAGE, VISION, TRAINED = "language_model", "vision_tower", "trained.safetensors"


@dataclass(frozen=True)
class Options:
    dtype: str = "keep"
    """Of the frozen models' tensors, one of DTYPES."""
    shard_bytes: int = 5_000_000_000
    """Largest safetensors file, unless a single tensor is larger."""
    language_heads: int = 32
    """Attention heads of a language model without params.json."""
    vision_heads: int = 0
    """Attention heads of the vision tower; 0: as many as OpenAI's have."""
    eps: float = 1e-6
    """Epsilon of the norms of a language model without params.json."""


def convert(source: Path, out: Path, options: Options = Options()) -> list[str]:
    """Write what `source` holds, a folder of Meta's or one file, and return a line about each part.

    One model alone is written to `out` itself; of a file with several, the language model, the vision tower and the
    trained tensors go to `language_model/`, `vision_tower/` and `trained.safetensors` in `out`. Raises ValueError or
    FileNotFoundError for a source that is none or not whole, OSError where `out` cannot be written.
    """
    beside: list[Path] = []
    said: list[str] = []
    models: dict[str, tuple[Tensors, PretrainedConfig]] = {}
    trained: Tensors = {}
    if source.is_dir():
        if not is_meta_folder(source):
            raise ValueError(f"{source} holds no consolidated.*.pth; a Hugging Face folder needs no conversion")
        models[LANGUAGE] = meta_language_model(source)
        tokenizer, word = tokenizer_of(source)
        beside, said = [tokenizer] if tokenizer else [], [word] if word else []
    else:
        published = without_prefixes(tensors_in(source))
        found = {
            LANGUAGE: language_model(published, options.language_heads, options.eps),
            VISION: vision_tower(published, options.vision_heads),
        }
        models = {name: model for name, model in found.items() if model}
        trained = trained_tensors(published)
        if not (models or trained):
            raise ValueError(f"{source} holds no LLaMA, CLIP or MemVP tensors under their published names")
        said = [f"left out, since no forward pass uses it: {name}" for name in published if name == DEAD]
    for name, (tensors, config) in models.items():
        check_tensors(source, tensors, config)
        folder = out if len(models) == 1 and not trained else out / name
        tensors = {n: t.to(DTYPES[options.dtype]) for n, t in tensors.items()}
        write_model(folder, tensors, config, options.shard_bytes, beside)
        said.insert(0, f"{len(tensors)} tensors of the {name.replace('_', ' ')} -> {folder}")
    if trained:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / TRAINED, save({name: t.read().contiguous() for name, t in trained.items()}))
        said.append(f"{len(trained)} trained tensors -> {out / TRAINED}")
    return said


def without_prefixes(tensors: Tensors) -> Tensors:
    """Without the wrappers' "module.", and "w." of the reference recording, which also holds other tensors."""
    if any(name.startswith("w.") for name in tensors):
        tensors = {name: t for name, t in tensors.items() if name.startswith("w.")}
    return {re.sub(r"^(module\.)?(w\.)?", "", name): t for name, t in tensors.items()}


def check_tensors(source: Path, tensors: Tensors, config: PretrainedConfig) -> None:
    """The names and shapes that transformers' model of this configuration has, no others. Raises ValueError."""
    kind: Any = LlamaForCausalLM if config.model_type == "llama" else CLIPVisionModel
    with torch.device("meta"):
        model = kind(config)
    wanted = {name.removeprefix("vision_model."): tuple(t.shape) for name, t in model.state_dict().items()}
    if getattr(config, "tie_word_embeddings", False):
        wanted.pop("lm_head.weight", None)
    wrong = [f"{name} is missing" for name in wanted if name not in tensors]
    wrong += [f"{name} is left over" for name in tensors if name not in wanted]
    wrong += [
        f"{name} has shape {tensor.shape} instead of {wanted[name]}"
        for name, tensor in tensors.items()
        if name in wanted and tensor.shape != wanted[name]
    ]
    if wrong:
        raise ValueError(f"{source} is not whole or not of the sizes it claims: {some(wrong)}")
