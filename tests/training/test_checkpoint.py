"""Checkpoints: whole or not there, and refused where they do not fit."""

import json

import pytest
import torch

from dsmemvp.training.checkpoint import newest_checkpoint, read_checkpoint, save_checkpoint

VALUES = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}
MOMENTS = {f"{n}.{m}": t * 0.5 for n, t in VALUES.items() for m in ("exp_avg", "exp_avg_sq")}
SHAPES = {name: tuple(t.shape) for name, t in VALUES.items()}


ORDER = {"seed": 3, "training.global_batch": 8, "data.passes": [1.0], "data.train": ["0a", "0b"]}


def _save(run, epoch, step=None):
    return save_checkpoint(run, epoch, step or epoch * 10, ORDER, {"name": "x"}, VALUES, MOMENTS)


def test_what_was_saved_is_read_back(tmp_path):
    _save(tmp_path, 2)
    found = newest_checkpoint(tmp_path)
    assert (found.epoch, found.step, found.recipe, found.order) == (2, 20, {"name": "x"}, ORDER)
    for saved, read in ((VALUES, found.values(SHAPES)), (MOMENTS, found.moments(SHAPES))):
        assert saved.keys() == read.keys()
        assert all(torch.equal(saved[name], read[name]) for name in saved)


def test_the_latest_step_is_taken_whatever_its_epoch_and_a_cut_off_write_is_not(tmp_path):
    for epoch, step in ((1, 90), (1, 100), (0, 7)):
        _save(tmp_path, epoch, step)
    (tmp_path / "checkpoints" / "partial-step-00000101").mkdir()
    found = newest_checkpoint(tmp_path)
    assert (found.step, found.trained.parent.name) == (100, "step-00000100")


def test_a_cut_off_write_is_in_nobody_s_way(tmp_path):
    partial = tmp_path / "checkpoints" / "partial-step-00000010"
    partial.mkdir(parents=True)
    (partial / "left-over").touch()
    assert {path.name for path in _save(tmp_path, 1).iterdir()}.isdisjoint({"left-over"}) and not partial.exists()


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    _save(tmp_path, 1)
    save_checkpoint(tmp_path, 1, 10, ORDER, {"name": "y"}, VALUES, MOMENTS)
    assert newest_checkpoint(tmp_path).recipe == {"name": "y"}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


def test_the_state_is_on_the_disk_before_the_folder_has_its_name(tmp_path, monkeypatch):
    flushed = []

    def flush(path):
        flushed.append(path.name)
        assert (tmp_path / "checkpoints" / "step-00000010").exists() == (path.name == "checkpoints")

    monkeypatch.setattr("dsmemvp.training.checkpoint.flush", flush)
    _save(tmp_path, 1)
    assert sorted(flushed[:3]) == ["optimizer.safetensors", "state.json", "trained.safetensors"]
    assert flushed[3:] == ["partial-step-00000010", "checkpoints"]


def test_there_is_none_in_a_new_run(tmp_path):
    assert newest_checkpoint(tmp_path) is None


def test_only_trained_tensors_and_text_are_in_it(tmp_path):
    folder = _save(tmp_path, 1)
    assert sorted(p.name for p in folder.iterdir()) == ["optimizer.safetensors", "state.json", "trained.safetensors"]


def test_another_shape_missing_and_left_over_tensors_are_named(tmp_path):
    found = read_checkpoint(_save(tmp_path, 1))
    with pytest.raises(ValueError, match=r"trained\.safetensors.*a has shape \(2, 3\), the model wants \(3, 2\)"):
        found.values({"a": (3, 2), "b": (4,)})
    with pytest.raises(ValueError, match=r"c is missing; b is left over"):
        found.values({"a": (2, 3), "c": (4,)})


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1}', '{"format": 99}', '{"format": 2}', "[]", "\xff"])
def test_a_damaged_state_is_refused(tmp_path, text):
    folder = _save(tmp_path, 1)
    (folder / "state.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"state\.json"):
        read_checkpoint(folder)


def test_a_truncated_tensor_file_is_refused(tmp_path):
    folder = _save(tmp_path, 1)
    path = folder / "trained.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        read_checkpoint(folder).values(SHAPES)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"state\.json does not exist"):
        read_checkpoint(tmp_path)


def test_the_state_is_plain_json(tmp_path):
    assert json.loads((_save(tmp_path, 3) / "state.json").read_text())["epoch"] == 3


def test_another_method_is_refused_by_its_key(tmp_path):
    trained_with = {"method": {"visual_scale": 0.01, "slots": 4}, "vision": {}}
    folder = save_checkpoint(tmp_path, 1, 1, ORDER, trained_with, VALUES, MOMENTS)
    found = read_checkpoint(folder)
    found.check_method(trained_with)
    with pytest.raises(ValueError, match=r"method\.visual_scale: is 0\.1, but .* was trained with 0\.01"):
        found.check_method({"method": {"visual_scale": 0.1, "slots": 4}, "vision": {}})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 4}, r"^seed: is 4, was 3 in the run that .*step-00000010 is of"),
        ({"training.global_batch": 16}, r"^training\.global_batch: is 16, was 8 in the run"),
        ({"data.passes": [2.0]}, r"^data\.passes: is \[2\.0\], was \[1\.0\]"),
        ({"data.train": ["0a", "0c"]}, r"^data\.train: the shards differ in the run"),
        ({"data.train": ["0b", "0a"]}, r"^data\.train: the shards differ in the run"),
    ],
)
def test_another_order_of_samples_is_refused_by_its_key(tmp_path, changed, message):
    found = read_checkpoint(_save(tmp_path, 1))
    found.check_order(ORDER)
    with pytest.raises(ValueError, match=message):
        found.check_order({**ORDER, **changed})


def test_a_file_of_trained_tensors_alone_can_be_evaluated(tmp_path):
    folder = _save(tmp_path, 1)
    found = read_checkpoint(folder / "trained.safetensors")
    assert found.values(SHAPES).keys() == VALUES.keys()
