"""Checkpoints of what was trained, whole and not per rank, so that a run goes on with any number of ranks.

    RUN/checkpoints/step-00001194/trained.safetensors     float32 values, tens of megabytes
                                  optimizer.safetensors   Adam moments
                                  state.json              step, epoch, recipe, what the order of samples follows from;
                                                          written last

A checkpoint is written in a folder of another name, made durable and renamed, so that one that was cut off is never
taken for a checkpoint. Nothing frozen is stored and nothing is unpickled.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dsmemvp.data.durable import flush

FORMAT = 2
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of each tensor."""
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    trained: Path
    """The file of trained tensors."""
    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Updates made: also the place in the data, since every step takes one global batch."""
    order: dict[str, Any] = field(default_factory=dict)
    """What the order of samples follows from, by the recipe's keys (data/sets.py)."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """What it was trained with; empty for a file from elsewhere."""

    def check_method(self, recipe: dict[str, Any]) -> None:
        """A checkpoint goes only with the method it was trained with: shapes alone would let other scales pass. Raises
        ValueError naming the key."""
        for group in ("method", "vision") if self.recipe else ():
            for key, value in recipe[group].items():
                if self.recipe[group].get(key) != value:
                    raise ValueError(
                        f"{group}.{key}: is {value}, but {self.trained.parent} was trained with"
                        f" {self.recipe[group].get(key)}; take another name for the run or the old value"
                    )

    def check_order(self, order: dict[str, Any]) -> None:
        """A run goes on only in the order it began in: in another one samples would be missed or seen twice. Raises
        ValueError naming the key."""
        for key, value in order.items():
            if self.order.get(key) != value:
                what = "the shards differ" if key == "data.train" else f"is {value}, was {self.order.get(key)}"
                raise ValueError(
                    f"{key}: {what} in the run that {self.trained.parent} is of, and so is the order of samples; take"
                    " another name for the run, or the old value"
                )

    def values(self, wanted: dict[str, tuple[int, ...]]) -> Tensors:
        """The trained tensors; `wanted` is name -> shape of the model's. Raises ValueError."""
        return read_trained(self.trained, wanted)

    def moments(self, wanted: dict[str, tuple[int, ...]]) -> Tensors:
        """Adam's moments, named after their tensors. Raises ValueError."""
        shapes = {f"{name}.{m}": shape for name, shape in wanted.items() for m in MOMENTS}
        return read_trained(self.trained.with_name("optimizer.safetensors"), shapes)


def save_checkpoint(
    run: Path,
    epoch: int,
    step: int,
    order: dict[str, Any],
    recipe: dict[str, Any],
    values: Tensors,
    moments: Tensors,
) -> Path:
    """Write one checkpoint, replacing one of the same step. Called by one rank."""
    final = run / "checkpoints" / f"step-{step:08d}"
    partial = final.with_name(f"partial-{final.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({n: t.contiguous() for n, t in values.items()}, partial / "trained.safetensors")
    save_file({n: t.contiguous() for n, t in moments.items()}, partial / "optimizer.safetensors")
    state = {"format": FORMAT, "epoch": epoch, "step": step, "order": order, "recipe": recipe}
    (partial / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    for path in [*partial.iterdir(), partial]:
        flush(path)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    flush(final.parent)
    return final


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """The checkpoint of the latest step in a run's folder."""
    folders = sorted((run / "checkpoints").glob("step-*"), reverse=True)
    return read_checkpoint(folders[0]) if folders else None


def read_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint's folder, or a single safetensors file of trained tensors, such as `dsmemvp import` writes. Raises
    FileNotFoundError or ValueError."""
    if folder.is_file():
        return Checkpoint(folder)
    path = folder / "state.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {folder} is not a checkpoint")
    try:
        state = json.loads(path.read_bytes())
        if state["format"] != FORMAT:
            raise ValueError(f"{path}: checkpoint format {state['format']}, this version reads {FORMAT}")
        trained = folder / "trained.safetensors"
        return Checkpoint(trained, state["epoch"], state["step"], state["order"], state["recipe"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a checkpoint's state ({error!r})") from None


def read_trained(path: Path, wanted: dict[str, tuple[int, ...]]) -> Tensors:
    """Tensors of a safetensors file, which must be exactly those of `wanted`. Raises FileNotFoundError or ValueError
    that lists what is missing, left over or of another shape."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error})") from None
    wrong = [f"{name} is missing" for name in sorted(wanted.keys() - tensors.keys())]
    wrong += [f"{name} is left over" for name in sorted(tensors.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & tensors.keys()):
        if tuple(tensors[name].shape) != tuple(wanted[name]):
            wrong.append(f"{name} has shape {tuple(tensors[name].shape)}, the model wants {tuple(wanted[name])}")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(f"{path} does not fit the recipe's model: {'; '.join(wrong[:5])}{more}")
    return tensors
