"""A step that is saved once more, as by a run that was stopped while it validated: whatever happens, one of the two
checkpoints is found."""

import shutil
from pathlib import Path

import pytest
import torch

from dsmemvp.checkpoints.checkpoint import State, save_checkpoint
from dsmemvp.checkpoints.choosing import newest_checkpoint, prune

VALUES = {"a": torch.arange(6.0).view(2, 3)}
MOMENTS = {f"a.{m}": VALUES["a"] * 0.5 for m in ("exp_avg", "exp_avg_sq")}


class Killed(BaseException):
    """As good as a signal: nobody catches it."""


def _save(run, loss):
    return save_checkpoint(run, State(1, 10, recipe={"name": "x"}, validation_loss=loss), VALUES, MOMENTS)


def _loss(run):
    found, complaints = newest_checkpoint(run)
    assert not complaints
    return found.state.validation_loss


@pytest.fixture
def run(tmp_path):
    _save(tmp_path, None)
    return tmp_path


def _fails_at(monkeypatch, error, name):
    """Path.rename of what is called so."""
    rename = Path.rename

    def renamed(path, target):
        if path.name.startswith(name):
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)


def test_a_replaced_one_that_cannot_be_removed_is_in_nobody_s_way(run, monkeypatch):
    def busy(path, ignore_errors=False):
        if not ignore_errors:
            raise OSError(39, "Directory not empty", str(path))

    monkeypatch.setattr(shutil, "rmtree", busy)
    _save(run, 0.5)
    assert _loss(run) == 0.5
    monkeypatch.undo()
    _save(run, 0.25)  # over what was left
    prune(run, 10, keep_last=1, keep_best=0)
    assert _loss(run) == 0.25 and [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000010"]


@pytest.mark.parametrize("name", ["step-", "partial-"])
def test_a_kill_between_any_two_steps_leaves_one(run, monkeypatch, name):
    _fails_at(monkeypatch, Killed(), name)
    with pytest.raises(Killed):
        _save(run, 0.5)
    monkeypatch.undo()
    assert _loss(run) is None
    _save(run, 0.25)
    prune(run, 10, keep_last=1, keep_best=0)
    assert _loss(run) == 0.25 and [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000010"]


def test_a_kill_while_the_replaced_one_is_removed_leaves_the_new_one(run, monkeypatch):
    def killed(path, ignore_errors=False):
        if Path(path).name.startswith("old-") and Path(path).exists():
            next(Path(path).iterdir()).unlink()
            raise Killed

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(Killed):
        _save(run, 0.5)
    monkeypatch.undo()
    assert _loss(run) == 0.5


def test_a_file_system_that_refuses_the_new_name_gives_the_old_one_back(run, monkeypatch):
    _fails_at(monkeypatch, OSError(5, "Input/output error"), "partial-")
    with pytest.raises(OSError, match="Input/output"):
        _save(run, 0.5)
    monkeypatch.undo()
    assert _loss(run) is None and [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000010"]
