"""What earlier stages of a run, or of another one, have trained: tensors out of several checkpoints.

A stage's checkpoints hold the tensors that take part in it. A later stage takes each of its own from the newest
checkpoint that has it, so that the last one of every stage is kept (choosing.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from dsmemvp.backbones.safetensors_file import read_header
from dsmemvp.checkpoints.checkpoint import Checkpoint, Tensors, check_sums, named_checkpoint, read_checkpoint
from dsmemvp.checkpoints.choosing import checkpoint_folders, newest_checkpoint
from dsmemvp.errors import UserError


@dataclass(frozen=True)
class Earlier:
    """Where a stage takes from what it does not begin with initial values."""

    found: tuple[Checkpoint, ...] = ()
    """The newest first; they are read when a tensor is looked for in them."""

    def values(self, wanted: Mapping[str, tuple[int, ...]], needed: str = "") -> Tensors:
        """Of `wanted`, by name and shape, those that a checkpoint holds; all of them if `needed` says for what. Raises
        UserError for one of another shape, one that is missing, and for a damaged file."""
        values: Tensors = {}
        for checkpoint in self.found:
            header = read_header(checkpoint.trained, "checkpoint")
            here = [name for name in wanted if name not in values and name in header]
            for name in here:
                if header[name].shape != tuple(wanted[name]):
                    raise UserError(
                        f"{checkpoint.trained} does not fit the recipe's model: {name} has shape {header[name].shape},"
                        f" the model needs {tuple(wanted[name])}"
                    )
            if here:
                _check(checkpoint)
                with safe_open(checkpoint.trained, framework="pt") as file:
                    values |= {name: file.get_tensor(name).float() for name in here}
        missing = [name for name in wanted if name not in values]
        if needed and missing:
            where = str(self.found[0].trained.parent) if self.found else "a new run"
            raise UserError(
                f"{needed}: neither {where} nor a checkpoint of its run before it holds {missing[0]}"
                f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}"
            )
        return values


def with_earlier(start: Checkpoint) -> tuple[Checkpoint, ...]:
    """A checkpoint, and those of its run before it, the newest first."""
    folder = start.trained.parent
    if folder.parent.name != "checkpoints" or not folder.name.startswith("step-"):
        return (start,)
    before = [path for path in checkpoint_folders(folder.parent.parent) if path.name < folder.name]
    return (start, *(Checkpoint(path / start.trained.name) for path in before[::-1]))


def start_checkpoint(place: Path, key: str) -> Checkpoint:
    """The newest intact checkpoint of a run's folder, or the one that `place` is. Raises UserError naming the key."""
    try:
        if (place / "checkpoints").is_dir():
            found, complaints = newest_checkpoint(place)
            if found is None:
                raise UserError("; ".join([f"{place / 'checkpoints'} holds no intact checkpoint", *complaints]))
            return found
        return named_checkpoint(place)
    except (ValueError, OSError) as error:
        raise UserError(f"{key}: {error}") from None


def _check(checkpoint: Checkpoint) -> None:
    """Raises UserError if the file of trained tensors is not as it was written. A file by itself has no checksum."""
    folder = checkpoint.trained.parent
    if (folder / "state.json").is_file():
        read_checkpoint(folder)
        check_sums(folder)
