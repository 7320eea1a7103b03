"""`dsmemvp convert`: what a source holds, found by its names, checked against transformers' own models, written."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from transformers import CLIPVisionModel, Dinov2Model, LlamaForCausalLM, PretrainedConfig

from dsmemvp.atomic_files import replace_file
from dsmemvp.backbones.configs import check_config
from dsmemvp.backbones.safetensors_file import some
from dsmemvp.config.methods import method_names
from dsmemvp.convert.clip import vision_tower
from dsmemvp.convert.files import open_weights
from dsmemvp.convert.gguf_file import Gguf
from dsmemvp.convert.gguf_model import gguf_language_model
from dsmemvp.convert.gguf_tokenizer import tokenizer_files
from dsmemvp.convert.hugging_face import is_torch_folder, torch_folder_model
from dsmemvp.convert.lazy import Tensors
from dsmemvp.convert.llama import language_model
from dsmemvp.convert.meta import is_meta_folder, meta_language_model, tokenizer_of
from dsmemvp.convert.onnx_file import onnx_vision_tower
from dsmemvp.convert.wheel import model_file
from dsmemvp.convert.writing import check_folder, write_model
from dsmemvp.counting import counted
from dsmemvp.dtypes import NAMED, STORED
from dsmemvp.errors import UserError
from dsmemvp.prompts import method_class
from dsmemvp.prompts.interface import PublishedLayout

LANGUAGE, VISION, TRAINED = "language_model", "vision_tower", "trained.safetensors"
KINDS = {"llama": LlamaForCausalLM, "clip_vision_model": CLIPVisionModel, "dinov2": Dinov2Model}
DINOV2_STORED = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
DINOV2_STORED |= {"o_proj": "output.dense"}
"""Parts of a DINOv2's names in transformers 5 -> in its published files, which all versions read."""


@dataclass(frozen=True)
class Options:
    dtype: str = "keep"
    """Of the frozen models' tensors, one of NAMED, or "keep"."""
    shard_bytes: int = 5_000_000_000
    """Largest safetensors file, unless a single tensor is larger."""
    language_heads: int = 32
    """Attention heads of a language model without params.json."""
    vision_heads: int = 0
    """Attention heads of the vision tower; 0: as many as OpenAI's have."""
    eps: float = 1e-6
    """Epsilon of the norms of a language model without params.json."""

    def __post_init__(self) -> None:
        """Raises UserError naming the option."""
        for name, wrong in (
            ("--language-heads", self.language_heads < 1),
            ("--vision-heads", self.vision_heads < 0),
            ("--norm-eps", not self.eps > 0),
            ("--shard-size", self.shard_bytes < 1),
        ):
            if wrong:
                raise UserError(f"{name}: must be above zero")


def convert(source: Path, out: Path, options: Options = Options()) -> list[str]:
    """Write what `source` holds, a folder or one file, and return a line about each part.

    One model alone is written to `out` itself; of a file with several, the language model, the vision tower and the
    trained tensors go to `language_model/`, `vision_tower/` and `trained.safetensors` in `out`. Raises UserError or
    FileNotFoundError for a source that is none or not whole, OSError if `out` cannot be written.
    """
    with model_file(source, out.parent) as file:
        return _convert(file, out, options)


def _convert(source: Path, out: Path, options: Options) -> list[str]:
    found = _of_folder(source) if source.is_dir() else _of_file(source, options)
    alone = len(found.models) == 1 and not found.trained
    folders = {name: out if alone else out / name for name in found.models}
    for tensors in (found.trained, *(tensors for tensors, _ in found.models.values())):
        check_types(source, tensors)
    for name, (tensors, config) in found.models.items():
        check_tensors(source, tensors, config)
        check_folder(folders[name], config)
    for name, (tensors, config) in found.models.items():
        folder = folders[name]
        tensors = {n: t.to(None if options.dtype == "keep" else NAMED[options.dtype]) for n, t in tensors.items()}
        write_model(folder, tensors, config, options.shard_bytes, found.beside)
        found.said.insert(0, f"{counted(len(tensors), 'tensor')} of the {name.replace('_', ' ')} -> {folder}")
    if found.trained:
        out.mkdir(parents=True, exist_ok=True)
        trained = {name: t.read().contiguous() for name, t in found.trained.items()}
        replace_file(out / TRAINED, save(trained, metadata=found.settings))
        found.said.append(f"{counted(len(trained), 'trained tensor')} -> {out / TRAINED}")
        if found.settings:
            found.said.append(f"trained with {', '.join(f'{k}={v}' for k, v in found.settings.items())}")
    return found.said


@dataclass
class _Found:
    """What a source holds."""

    models: dict[str, tuple[Tensors, PretrainedConfig]]
    trained: Tensors = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    """What the trained tensors' file says of the recipe's keys."""
    beside: dict[str, bytes] = field(default_factory=dict)
    """Other files of the folder, by their names."""
    said: list[str] = field(default_factory=list)


def _of_folder(source: Path) -> _Found:
    if is_meta_folder(source):
        tokenizer, word = tokenizer_of(source)
        beside = {tokenizer.name: tokenizer.read_bytes()} if tokenizer else {}
        said = [word] if word else []
        return _Found({LANGUAGE: meta_language_model(source)}, beside=beside, said=said)
    if is_torch_folder(source):
        name, tensors, config, files = torch_folder_model(source)
        return _Found({name: (tensors, config)}, beside={path.name: path.read_bytes() for path in files})
    raise UserError(
        f"{source} holds neither consolidated.*.pth nor pytorch_model*.bin with a config.json; a Hugging Face folder"
        " with safetensors needs no conversion"
    )


def _of_file(source: Path, options: Options) -> _Found:
    if re.fullmatch(r"consolidated\.\d+\.pth", source.name) and source.with_name("params.json").is_file():
        raise UserError(f"{source} is a piece of a model; give its folder, whose params.json says how it is built")
    if source.suffix == ".gguf":
        file = Gguf(source)
        files, word = tokenizer_files(file)
        return _Found({LANGUAGE: gguf_language_model(file)}, beside=files, said=[word] if word else [])
    if source.suffix == ".onnx":
        return _Found({VISION: onnx_vision_tower(source)})
    tensors, given = open_weights(source)
    published = without_prefixes(tensors)
    language = language_model(published, options.language_heads, options.eps)
    vision = vision_tower(published, options.vision_heads)
    layout, trained = _trained(published)
    if not (language or vision or trained):
        raise UserError(f"{source} holds no tensors of a LLaMA, a CLIP or a method under their published names")
    found = _Found({name: model for name, model in ((LANGUAGE, language), (VISION, vision)) if model}, trained)
    unused = layout.unused if layout else ()
    found.said += [f"left out, since no forward pass uses it: {name}" for name in published if name in unused]
    if language:
        found.said.append(
            f"taken for granted, since the file does not tell: {options.language_heads} heads (--language-heads),"
            f" an epsilon of {options.eps} (--norm-eps), a rotary base of 10000"
        )
    if layout:
        settings = {key: given[name] for name, key in layout.options.items() if name in given}
        found.settings = {key: str(value) for key, value in settings.items() if isinstance(value, int | float)}
    return found


def _trained(tensors: Tensors) -> tuple[PublishedLayout | None, Tensors]:
    """The layout of the first method that finds trained tensors among these, and what it finds."""
    for name in method_names():
        layout = method_class(name).published
        trained = layout.trained_tensors(tensors) if layout else {}
        if trained:
            return layout, trained
    return None, {}


def without_prefixes(tensors: Tensors) -> Tensors:
    """Without the wrappers' "module.", and "w." of the reference recording, which also holds other tensors."""
    if any(name.startswith("w.") for name in tensors):
        tensors = {name: t for name, t in tensors.items() if name.startswith("w.")}
    return {re.sub(r"^(module\.)?(w\.)?", "", name): t for name, t in tensors.items()}


def check_types(source: Path, tensors: Tensors) -> None:
    """Raises UserError for a tensor of a type that is not written, such as complex numbers."""
    for name, tensor in tensors.items():
        if tensor.dtype not in STORED.values():
            raise UserError(f"{source}: {name} is of the type {tensor.dtype}, which is not read")


def check_tensors(source: Path, tensors: Tensors, config: PretrainedConfig) -> None:
    """The names and shapes that transformers' model of this configuration has, no others. Raises UserError."""
    kind: Any = KINDS[config.model_type]
    layers: int = config.num_hidden_layers
    if layers > len(tensors):
        raise UserError(
            f"{source} is not whole or not of the sizes it claims: {counted(layers, 'layer')},"
            f" {counted(len(tensors), 'tensor')}"
        )
    try:
        check_config(config)
        with torch.device("meta"):
            model = kind(config)
    except Exception as error:  # transformers raises many kinds
        raise UserError(f"{source} has sizes that no model has ({' '.join(str(error).split())})") from None
    wanted = {_stored_name(name): tuple(t.shape) for name, t in model.state_dict().items()}
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
        raise UserError(f"{source} is not whole or not of the sizes it claims: {some(wrong)}")


def _stored_name(name: str) -> str:
    """Of a tensor in a folder's files."""
    part, dot, last = name.removeprefix("vision_model.").rpartition(".")
    front, _, layer = part.rpartition(".")
    if front.endswith(".attention") and front.startswith("encoder.layer.") and layer in DINOV2_STORED:
        part = f"{front}.{DINOV2_STORED[layer]}"
    return f"{part}{dot}{last}"
