"""Which of a run's checkpoints to take, the newest or the best intact one, and which to keep."""

import math
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from dsmemvp.checkpoints.checkpoint import OLD, Checkpoint, out_of_the_way, read_checkpoint, read_state
from dsmemvp.checkpoints.state_file import OtherVersion


def newest_checkpoint(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The intact checkpoint of the latest step in a run's folder, and what is wrong with later ones. Raises OSError, or
    UserError for one that another version has written."""
    found, complaints = _first_intact(checkpoint_folders(run)[::-1])
    return found, [f"{complaint}{'; the checkpoint before it is taken' * bool(found)}" for complaint in complaints]


def best_checkpoint(run: Path, best_by: str) -> tuple[Checkpoint | None, list[str]]:
    """The intact checkpoint with the lowest "loss" or the highest "score" on data.validation, and what is wrong with
    better ones. None if that was measured beside none of them."""
    found, complaints = _first_intact(_best_first(checkpoint_folders(run), best_by))
    return found, [f"{complaint}{'; the next best checkpoint is taken' * bool(found)}" for complaint in complaints]


def checkpoint_folders(run: Path) -> list[Path]:
    """Folders of checkpoints, by their steps; one that was put aside counts if nothing stands in its place, since its
    run was killed. Raises OSError if they cannot be listed: a run must not restart then."""
    folder = run / "checkpoints"
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    names = sorted({name.removeprefix(OLD) for name in found})
    return [folder / (name if name in found else OLD + name) for name in names if name.startswith("step-")]


def _first_intact(folders: list[Path]) -> tuple[Checkpoint | None, list[str]]:
    complaints: list[str] = []
    for folder in folders:
        try:
            found = read_checkpoint(folder, whole=True)
        except OtherVersion:
            raise
        except (ValueError, FileNotFoundError) as error:
            complaints.append(str(error))
        else:
            return found, complaints
    return None, complaints


def prune(
    run: Path, step: int, keep_last: int, keep_best: int, best_by: str = "loss", ends: Collection[int] = ()
) -> None:
    """Take away all but the latest and the best (by "loss" or "score" on data.validation) checkpoints up to `step` and
    those of the steps `ends`, and what cut-off writes have left. `keep_last` 0 keeps all. Those of later steps go: they
    were damaged, or the run would have resumed there, and counted as the latest they would push out the good ones."""
    folder = run / "checkpoints"
    for left in [*folder.glob("partial-*"), *folder.glob(f"{OLD}*")]:
        shutil.rmtree(left, ignore_errors=True)
    folders = sorted(folder.glob("step-*"))
    later = [path for path in folders if path.name > f"step-{step:08d}"]
    folders = folders[: len(folders) - len(later)]
    kept = set(folders[-keep_last:])  # [-0:] is all
    kept.update(folder / f"step-{end:08d}" for end in ends)
    if keep_best:
        kept.update(_best_first(folders, best_by)[:keep_best])
    for path in [*folders, *later]:
        if path not in kept:
            shutil.rmtree(out_of_the_way(path))


def _best_first(folders: list[Path], best_by: str) -> list[Path]:
    """Of checkpoints in the order of their steps, those of the last one's stage for which it is known how good they
    are; the earlier of two equal ones first."""
    stages = {folder: _field(folder, "stage") or "" for folder in folders}
    last = next((stage for stage in reversed(stages.values()) if stage), "")  # a damaged one says none
    folders = [folder for folder in folders if stages[folder] == last]
    badness = {folder: _badness(folder, best_by) for folder in folders}
    return sorted((folder for folder in folders if badness[folder] < math.inf), key=badness.__getitem__)


def _badness(folder: Path, best_by: str) -> float:
    """On data.validation; infinite if it is not known."""
    value = _field(folder, f"validation_{best_by}")
    return math.inf if value is None else -value if best_by == "score" else value


def _field(folder: Path, name: str) -> Any:
    """Of state.json; None if it is not there or cannot be read."""
    try:
        return read_state(folder).get(name)
    except (ValueError, FileNotFoundError):
        return None
