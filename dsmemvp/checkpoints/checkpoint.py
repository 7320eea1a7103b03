"""Checkpoints of what was trained, whole and not per rank, so that a run resumes with any number of ranks, on any ZeRO
stage and device.

    RUN/checkpoints/step-00001194/trained.safetensors     float32 values, tens of megabytes
                                  optimizer.safetensors   Adam moments
                                  state.json              where the run is, what it depends on, the others' checksums

A checkpoint is written in a folder of another name, flushed to disk and renamed, so that one that was cut off is never
taken for a checkpoint; what a disk has spoiled afterwards shows in the checksums. Nothing frozen is stored, only what
the base is known by, and nothing is unpickled. There is no random state to store: order and dropout are functions of
seed, rank and step, the learning rate of the step.
"""

import hashlib
import json
import math
import shutil
import warnings
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dsmemvp.atomic_files import flush
from dsmemvp.backbones.safetensors_file import make_header, read_header, read_metadata
from dsmemvp.checkpoints.state_file import OtherVersion, own_sum, read_fields, sum_of
from dsmemvp.config.methods import method_settings
from dsmemvp.config.recipe import Vision
from dsmemvp.data.text import PROMPT_FORMAT
from dsmemvp.dtypes import WEIGHTS
from dsmemvp.errors import UserError

FORMATS = (3, 4, 5)
"""Versions of state.json: those that are read; the last one is written. 3 has no validation_score; before 5
the base was identified in another way (backbones/fingerprint.py), which cannot be compared."""
OLD = "old-"
"""Begins the name of a checkpoint that has been put aside, to be replaced or removed."""
ADAPTER = "adapter.json"
"""What an exported folder (checkpoints/adapter.py) has in the place of state.json, with a format of its own."""
ADAPTER_FORMATS = (1, 2)
"""As above; 1 identified the base in another way."""
REFUSES_ONLY = ("vision.max_pixels", "vision.cache_features")
"""A setting that changes nothing in what is computed."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's moments of each tensor."""
TENSOR_FILES = ("trained.safetensors", "optimizer.safetensors")
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class State:
    """Where a run is, and with what it may resume."""

    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Steps made: also the place in the data, since every step takes one global batch."""
    updates: int = 0
    """Of the steps of the stage it is in, those that Adam has made an update in."""
    not_finite: int = 0
    """Steps whose loss or gradient was not finite."""
    validation_loss: float | None = None
    """Loss per supervised token on data.validation, if there is one."""
    validation_score: float | None = None
    """The main score of an evaluation on data.validation, if the recipe asks for it."""
    order: dict[str, Any] = field(default_factory=dict)
    """What the order of samples follows from, by the recipe's keys (data/datasets.py)."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """The recipe it was trained with; empty for a file from elsewhere."""
    base: dict[str, str] = field(default_factory=dict)
    """Fingerprints of the frozen base, by the recipe's keys (backbones/fingerprint.py)."""
    callbacks: list[dict[str, Any]] = field(default_factory=list)
    """State of the method's callbacks, in their order."""
    stage: str = ""
    """The name of the stage that it is of; empty in a run of one."""


@dataclass(frozen=True)
class Checkpoint:
    trained: Path
    """The file of trained tensors."""
    state: State = State()
    stated: dict[str, str] = field(default_factory=dict)
    """What a file by itself says of the recipe's keys, as `dsmemvp convert` writes it."""

    def check_method(self, recipe: dict[str, Any]) -> None:
        """A checkpoint goes only with the method it was trained with: shapes alone would let other scales pass. Its
        other settings do not count, and a key that was added after it was written has had its default. Raises UserError
        naming the key."""
        for key, text in self.stated.items():
            group, _, name = key.partition(".")
            value = recipe[group].get(name)
            if isinstance(value, str | None) or not _is_number(text):
                raise UserError(f"{self.trained} says {key}={text[:40]!r} of itself, which is no setting of a method")
            if float(text) != value:
                raise UserError(f"{key}: is {recipe[group][name]}, but {self.trained} was trained with {text}")
        if not self.state.recipe:
            return
        defaults = {"method": asdict(method_settings(recipe["method"]["name"])), "vision": asdict(Vision())}
        for group, of_group in defaults.items():
            trained_with = of_group | self.state.recipe.get(group, {})
            for key, value in recipe[group].items():
                if f"{group}.{key}" not in REFUSES_ONLY and trained_with[key] != value:
                    raise UserError(
                        f"{group}.{key}: is {value}, but {self.trained.parent} was trained with {trained_with[key]};"
                        " take another name for the run or the old value"
                    )

    def check_same_method(self, name: str) -> None:
        """For a stage that starts from a checkpoint of another run. Raises UserError."""
        trained_with = self.state.recipe.get("method", {}).get("name", name)
        if trained_with != name:
            raise UserError(f"method.name: is {name}, but {self.trained.parent} was trained with {trained_with}")

    def check_base(self, base: dict[str, str]) -> None:
        """Trained tensors mean nothing on another base. Raises UserError naming the key."""
        for key, digest in self.state.base.items():
            if base.get(key) != digest:
                raise UserError(
                    f"{key}: {self.trained.parent} was trained on another one; name a copy of the one it was trained"
                    " with (a new run needs another name)"
                )

    def check_quantized(self, recipe: dict[str, Any]) -> None:
        """Warns if the base was stored in another form: it is the same one, and computes with other rounding."""
        was, now = (_stored_as(r.get("model", {})) for r in (self.state.recipe, recipe))
        if self.state.recipe and was != now:
            warnings.warn(
                f"model.quantize: is {now}, and {self.trained.parent} was trained with {was}: on the same base with"
                " other rounding; scores may differ a little",
                stacklevel=2,
            )

    def check_order(self, order: dict[str, Any]) -> None:
        """A run resumes only in the order it began in: in another one samples would be missed or seen twice. Raises
        UserError naming the key."""
        for key, value in order.items():
            if self.state.order.get(key) != value:
                what = "the shards differ" if key == "data.train" else f"is {value}, was {self.state.order.get(key)}"
                raise UserError(
                    f"{key}: {what} in the run that {self.trained.parent} is of, and so is the order of samples; take"
                    " another name for the run, or the old value"
                )

    def digest(self) -> str:
        """SHA-256 of the trained tensors' file, by which an evaluation names its checkpoint. Raises OSError."""
        return hashlib.sha256(self.trained.read_bytes()).hexdigest()

    def values(self, wanted: dict[str, tuple[int, ...]]) -> Tensors:
        """The trained tensors; `wanted` is name -> shape of the model's. Raises UserError."""
        return read_trained(self.trained, wanted)

    def moments(self, wanted: dict[str, tuple[int, ...]]) -> Tensors:
        """Adam's moments, named after their tensors. Raises UserError."""
        shapes = {f"{name}.{m}": shape for name, shape in wanted.items() for m in MOMENTS}
        return read_trained(self.trained.with_name("optimizer.safetensors"), shapes)


def _stored_as(model: dict[str, Any]) -> str:
    """How a recipe's part `model` stores the base; before `nf4_scales` they were the largest."""
    form = model.get("quantize", "none")
    return f"{form} with {model.get('nf4_scales', 'largest')} scales" if form == "nf4" else form


def save_checkpoint(run: Path, state: State, values: Tensors, moments: Tensors) -> Path:
    """Write one checkpoint, replacing one of the same step. Called by one rank. Raises OSError; what there was before
    is whole then."""
    final = run / "checkpoints" / f"step-{state.step:08d}"
    partial = final.with_name(f"partial-{final.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        content: dict[str, Any] = {"format": FORMATS[-1], **asdict(state), "files": {}}
        if not state.stage:
            del content["stage"]
        for name, tensors in zip(TENSOR_FILES, (values, moments), strict=True):
            content["files"][name] = _write_tensors(partial / name, tensors)
        content["crc32"] = own_sum(content)
        (partial / "state.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        for path in [*partial.iterdir(), partial]:
            flush(path)
        replaced = out_of_the_way(final) if final.exists() else None
        try:
            partial.rename(final)
        except OSError:
            if replaced is not None:
                replaced.rename(final)
            raise
        flush(final.parent)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if replaced is not None:  # what cannot be removed now, such as a file that NFS sees in use, `prune` removes later
        shutil.rmtree(replaced, ignore_errors=True)
    return final


def _write_tensors(path: Path, tensors: Tensors) -> list[int]:
    """One safetensors file; returns its [bytes, CRC-32]. Raises OSError.

    Nothing is copied, and Python's lock is only held between the tensors: safetensors' own `save` holds it for the
    whole file, and a step that runs beside it would wait."""
    about = ((name, t.dtype, tuple(t.shape)) for name, t in tensors.items())
    header = make_header(about, {})
    size, total = len(header), zlib.crc32(header)
    with path.open("wb") as file:
        file.write(header)
        for tensor in tensors.values():
            values = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
            file.write(values)
            size, total = size + len(values), zlib.crc32(values, total)
    return [size, total]


def read_checkpoint(folder: Path, whole: bool = False) -> Checkpoint:
    """A checkpoint's folder, one that `dsmemvp export` has written, or a single safetensors file of trained tensors,
    such as `dsmemvp convert` writes. `whole`: read the files of a folder and compare their checksums. Raises UserError,
    or FileNotFoundError for one that is taken away meanwhile."""
    if folder.is_file():
        return Checkpoint(folder, stated=_stated(folder))
    content = read_state(folder)
    if content.get("prompt_format", PROMPT_FORMAT) != PROMPT_FORMAT:
        raise OtherVersion(
            f"{folder} was trained on prompts of format {content['prompt_format']}, this version writes"
            f" {PROMPT_FORMAT}; use dsmemvp {content.get('dsmemvp', 'of another version')}"
        )
    content.setdefault("validation_score", None)
    content.setdefault("callbacks", [])
    content.setdefault("stage", "")
    if content["format"] != (ADAPTER_FORMATS if (folder / ADAPTER).is_file() else FORMATS)[-1]:
        warnings.warn(
            f"{folder} is of an earlier version; whether its base is this one cannot be checked", stacklevel=2
        )
        content["base"] = {}
    fields = {name: content[name] for name in State.__dataclass_fields__}
    if whole:
        _check_sums(folder, content["files"])
    return Checkpoint(folder / "trained.safetensors", State(**fields))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _stated(path: Path) -> dict[str, str]:
    about = read_metadata(path, "checkpoint")
    return {key: text for key, text in about.items() if key.startswith("method.")}


def named_checkpoint(place: Path) -> Checkpoint:
    """One that a user has named, as `read_checkpoint` takes it; a folder's trained tensors are compared with their
    checksum. Raises UserError."""
    found = read_checkpoint(place)
    if not place.is_file():
        _check_sums(place, {found.trained.name: read_state(place)["files"][found.trained.name]})
    return found


def check_sums(folder: Path) -> None:
    """Read a checkpoint's files and compare their checksums. Raises UserError."""
    _check_sums(folder, read_state(folder)["files"])


def _check_sums(folder: Path, sums: dict[str, list[int]]) -> None:
    for name, wanted in sums.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} does not exist")
        if sum_of(path) != wanted:
            raise UserError(f"{path} is damaged: its checksum is not the one it was written with")


def read_trained(path: Path, wanted: dict[str, tuple[int, ...]]) -> Tensors:
    """Tensors of a safetensors file, which must be exactly those of `wanted`. Raises UserError
    that lists what is missing, left over or of another shape."""
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    stored = read_header(path, "checkpoint")  # before a tensor takes memory
    wrong = [f"{name} is missing" for name in sorted(wanted.keys() - stored.keys())]
    wrong += [f"{name} is left over" for name in sorted(stored.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & stored.keys()):
        if stored[name].shape != tuple(wanted[name]):
            wrong.append(f"{name} has shape {stored[name].shape}, the model needs {tuple(wanted[name])}")
        elif stored[name].dtype not in WEIGHTS:
            wrong.append(f"{name} is of the type {stored[name].dtype}")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(f"{path} does not fit the recipe's model: {'; '.join(wrong[:5])}{more}")
    return load_file(path)


def out_of_the_way(folder: Path) -> Path:
    """Renamed before its files go one by one: half a checkpoint must not bear the name of a whole one."""
    other = folder.with_name(f"{OLD}{folder.name}")
    if other.exists():
        shutil.rmtree(other, ignore_errors=True)
    return folder.rename(other)


def read_state(folder: Path) -> dict[str, Any]:
    """Read the folder's state.json and compare its checksum. Raises UserError."""
    adapter = folder / ADAPTER
    path, known = (adapter, ADAPTER_FORMATS) if adapter.is_file() else (folder / "state.json", FORMATS)
    if not path.is_file():
        raise UserError(f"{path} does not exist; {folder} is not a checkpoint")
    return read_fields(path, known, TENSOR_FILES[:1] if path == adapter else TENSOR_FILES)
