"""What later stages take of earlier ones, and which checkpoints of a run of several stages stay."""

import json

import pytest
import torch

from dsmemvp.checkpoints.checkpoint import State, read_checkpoint, save_checkpoint
from dsmemvp.checkpoints.choosing import best_checkpoint, prune
from dsmemvp.checkpoints.earlier import Earlier, start_checkpoint, with_earlier
from dsmemvp.errors import UserError


def _save(run, step: int, stage: str = "", loss: float | None = None, **values: float):
    tensors = {name: torch.full((2, 3), value) for name, value in values.items()}
    folder = save_checkpoint(run, State(1, step, stage=stage, validation_loss=loss), tensors, {})
    return read_checkpoint(folder, whole=True)


def test_each_tensor_is_of_the_newest_checkpoint_that_has_it(tmp_path):
    _save(tmp_path, 3, "text", a=1.0, b=1.0)
    _save(tmp_path, 6, "align", b=2.0)
    last = _save(tmp_path, 9, "generate", c=3.0)
    _save(tmp_path, 12, "finetune", a=4.0)
    origin = Earlier(with_earlier(last))
    shape = (2, 3)
    found = origin.values(dict.fromkeys("abcd", shape))
    assert {name: value[0, 0].item() for name, value in found.items()} == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert all(value.dtype == torch.float32 for value in found.values())
    with pytest.raises(
        UserError, match=r"stage x: neither .*step-00000009 nor a checkpoint of its run before it holds d"
    ):
        origin.values(dict.fromkeys("abd", shape), "stage x")
    with pytest.raises(UserError, match=r"b has shape \(2, 3\), the model needs \(3, 2\)"):
        origin.values({"b": (3, 2)})
    assert Earlier().values({"a": shape}) == {}
    path = tmp_path / "checkpoints" / "step-00000006" / "trained.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="is damaged"):
        origin.values({"b": shape})


def test_a_start_is_a_run_a_checkpoint_or_a_file(tmp_path):
    _save(tmp_path, 3, "text", a=1.0)
    last = _save(tmp_path, 6, "align", a=2.0)
    for place in (tmp_path, last.trained.parent):
        assert start_checkpoint(place, "stages.x.start_from").trained == last.trained
    file = last.trained.rename(tmp_path / "alone.safetensors")
    assert start_checkpoint(file, "key").trained == file and with_earlier(start_checkpoint(file, "key")) != ()
    with pytest.raises(UserError, match=r"stages.x.start_from: .*nowhere"):
        start_checkpoint(tmp_path / "nowhere", "stages.x.start_from")


def test_the_last_checkpoint_of_a_stage_stays_and_the_best_are_of_one_stage(tmp_path):
    for step, stage, loss in ((1, "a", 0.1), (2, "a", 0.3), (3, "a", 0.2), (4, "b", 0.9), (5, "b", 0.8), (6, "b", 0.7)):
        _save(tmp_path, step, stage, loss, x=1.0)
    found, _ = best_checkpoint(tmp_path, "loss")
    assert found is not None and found.state.step == 6
    prune(tmp_path, 6, keep_last=1, keep_best=2, ends=[3])
    left = sorted(path.name[-1] for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["3", "5", "6"]


def test_a_run_of_one_stage_says_nothing_of_it(tmp_path):
    folder = _save(tmp_path, 3, x=1.0).trained.parent
    assert "stage" not in json.loads((folder / "state.json").read_text())
    assert read_checkpoint(_save(tmp_path, 4, "text", x=1.0).trained.parent).state.stage == "text"
