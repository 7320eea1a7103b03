"""Checkpoints: whole or not there, and refused where they do not fit."""

import json
import zlib

import pytest
import torch

from dsmemvp.checkpoints.checkpoint import State, read_checkpoint, save_checkpoint
from dsmemvp.checkpoints.choosing import best_checkpoint, newest_checkpoint, prune
from dsmemvp.config.methods import method_settings
from dsmemvp.config.reading import as_dict
from dsmemvp.config.recipe import Recipe, Vision
from dsmemvp.errors import UserError

VALUES = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}
MOMENTS = {f"{n}.{m}": t * 0.5 for n, t in VALUES.items() for m in ("exp_avg", "exp_avg_sq")}
SHAPES = {name: tuple(t.shape) for name, t in VALUES.items()}


ORDER = {"seed": 3, "training.global_batch": 8, "data.passes": [1.0], "data.train": ["0a", "0b"]}


BASE = {"model.language_model": "1f", "model.tokenizer": "2e"}


def _save(run, epoch, step=None, recipe=None, **state):
    of = State(epoch, step or epoch * 10, order=ORDER, recipe=recipe or {"name": "x"}, base=BASE, **state)
    return save_checkpoint(run, of, VALUES, MOMENTS)


def _newest(run):
    found, complaints = newest_checkpoint(run)
    assert not complaints
    return found


def test_what_was_saved_is_read_back(tmp_path):
    _save(tmp_path, 2, updates=19, not_finite=1, validation_loss=0.5, validation_score=60.0)
    found = _newest(tmp_path)
    assert found.state == State(2, 20, 19, 1, 0.5, 60.0, ORDER, {"name": "x"}, BASE)
    for saved, read in ((VALUES, found.values(SHAPES)), (MOMENTS, found.moments(SHAPES))):
        assert saved.keys() == read.keys()
        assert all(torch.equal(saved[name], read[name]) for name in saved)


def test_the_latest_step_is_taken_whatever_its_epoch_and_a_cut_off_write_is_not(tmp_path):
    for epoch, step in ((1, 90), (1, 100), (0, 7)):
        _save(tmp_path, epoch, step)
    (tmp_path / "checkpoints" / "partial-step-00000101").mkdir()
    found = _newest(tmp_path)
    assert (found.state.step, found.trained.parent.name) == (100, "step-00000100")


def test_a_cut_off_write_is_in_nobody_s_way(tmp_path):
    partial = tmp_path / "checkpoints" / "partial-step-00000010"
    partial.mkdir(parents=True)
    (partial / "left-over").touch()
    assert {path.name for path in _save(tmp_path, 1).iterdir()}.isdisjoint({"left-over"}) and not partial.exists()


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    _save(tmp_path, 1)
    _save(tmp_path, 1, recipe={"name": "y"})
    assert _newest(tmp_path).state.recipe == {"name": "y"}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


def test_the_state_is_on_the_disk_before_the_folder_has_its_name(tmp_path, monkeypatch):
    flushed = []

    def flush(path):
        flushed.append(path.name)
        assert (tmp_path / "checkpoints" / "step-00000010").exists() == (path.name == "checkpoints")

    monkeypatch.setattr("dsmemvp.checkpoints.checkpoint.flush", flush)
    _save(tmp_path, 1)
    assert sorted(flushed[:3]) == ["optimizer.safetensors", "state.json", "trained.safetensors"]
    assert flushed[3:] == ["partial-step-00000010", "checkpoints"]


def test_there_is_none_in_a_new_run(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, [])


def test_only_trained_tensors_and_text_are_in_it(tmp_path):
    folder = _save(tmp_path, 1)
    assert sorted(p.name for p in folder.iterdir()) == ["optimizer.safetensors", "state.json", "trained.safetensors"]


def test_another_shape_missing_and_left_over_tensors_are_named(tmp_path):
    found = read_checkpoint(_save(tmp_path, 1))
    with pytest.raises(UserError, match=r"trained\.safetensors.*a has shape \(2, 3\), the model needs \(3, 2\)"):
        found.values({"a": (3, 2), "b": (4,)})
    with pytest.raises(UserError, match=r"c is missing; b is left over"):
        found.values({"a": (2, 3), "c": (4,)})


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2}', '{"format": 99}', '{"format": 3}', "[]", "\xff"])
def test_a_damaged_state_is_refused(tmp_path, text):
    folder = _save(tmp_path, 1)
    (folder / "state.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"state\.json"):
        read_checkpoint(folder)


def test_a_truncated_tensor_file_is_refused(tmp_path):
    folder = _save(tmp_path, 1)
    path = folder / "trained.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_checkpoint(folder).values(SHAPES)


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_the_newest_intact_one_is_taken_and_the_damage_is_told(tmp_path, name, damage):
    _save(tmp_path, 1)
    path = _save(tmp_path, 2) / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        at = content.index(b'"epoch": 2') + 9 if name == "state.json" else len(content) - 3
        flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else flipped)
    found, (complaint,) = newest_checkpoint(tmp_path)
    assert found.state.step == 10
    assert str(path) in complaint and complaint.endswith("the checkpoint before it is taken")


def test_a_write_that_fails_leaves_the_others_whole_and_nothing_else(tmp_path, monkeypatch):
    _save(tmp_path, 1)

    def full(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("dsmemvp.checkpoints.checkpoint.flush", full)
    for epoch in (1, 2):
        with pytest.raises(OSError, match="No space left"):
            _save(tmp_path, epoch)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]
    assert _newest(tmp_path).state.step == 10


def test_the_latest_and_the_best_are_kept_and_leftovers_go(tmp_path):
    for epoch, loss in enumerate([0.9, 0.2, 0.5, None, 0.4, 0.6], 1):
        _save(tmp_path, epoch, validation_loss=loss)
    for left in ("partial-step-00000070", "old-step-00000020"):
        (tmp_path / "checkpoints" / left).mkdir()
    prune(tmp_path, 60, keep_last=0, keep_best=1)
    kept = lambda: sorted(int(path.name[-3:]) for path in (tmp_path / "checkpoints").iterdir())  # noqa: E731
    assert kept() == [10, 20, 30, 40, 50, 60]
    prune(tmp_path, 60, keep_last=2, keep_best=2)
    assert kept() == [20, 50, 60]
    prune(tmp_path, 60, keep_last=1, keep_best=0)
    assert kept() == [60]


def test_the_best_by_score_are_kept_and_found(tmp_path):
    for epoch, score in enumerate([50.0, 80.0, None, 80.0, 10.0], 1):
        _save(tmp_path, epoch, validation_score=score, validation_loss=float(epoch))
    assert best_checkpoint(tmp_path, "loss")[0].state.step == 10
    prune(tmp_path, 50, keep_last=1, keep_best=2, best_by="score")
    assert sorted(int(path.name[-3:]) for path in (tmp_path / "checkpoints").iterdir()) == [20, 40, 50]
    assert best_checkpoint(tmp_path, "score")[0].state.step == 20  # the earlier of two equal ones
    trained = tmp_path / "checkpoints" / "step-00000020" / "trained.safetensors"
    trained.write_bytes(trained.read_bytes()[:-1])
    found, (complaint,) = best_checkpoint(tmp_path, "score")
    assert found.state.step == 40 and complaint.endswith("the next best checkpoint is taken")


def test_none_is_best_where_nothing_was_measured(tmp_path):
    _save(tmp_path, 1, validation_loss=1.0)
    assert best_checkpoint(tmp_path, "score") == (None, [])


def test_a_checkpoint_of_the_format_before_is_read(tmp_path):
    """As earlier versions wrote it: without a score, and with other digests of the base, which cannot be compared."""
    folder = _save(tmp_path, 1, validation_loss=0.25)
    content = json.loads((folder / "state.json").read_text())
    del content["validation_score"], content["crc32"]
    content["format"] = 3
    content["crc32"] = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    (folder / "state.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="whether its base is this one cannot be checked"):
        state = _newest(tmp_path).state
    assert (state.step, state.validation_loss, state.validation_score, state.base) == (10, 0.25, None, {})
    assert best_checkpoint(tmp_path, "loss")[0].state.step == 10


@pytest.mark.parametrize("changed", [{"format": 99}, {"prompt_format": 99}])
def test_one_that_another_version_has_written_is_not_passed_over(tmp_path, changed):
    """A run that resumed from the one before would overwrite it."""
    _save(tmp_path, 1)
    path = _save(tmp_path, 2) / "state.json"
    content = json.loads(path.read_text()) | changed
    del content["crc32"]
    content["crc32"] = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"step-00000020.*; use "):
        newest_checkpoint(tmp_path)


def test_a_damaged_later_one_does_not_push_out_the_good_ones(tmp_path):
    for epoch in (1, 5):
        _save(tmp_path, epoch)
    (tmp_path / "checkpoints" / "step-00000050" / "state.json").write_text("")
    _save(tmp_path, 2)  # resumed from step 10
    prune(tmp_path, 20, keep_last=1, keep_best=0)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000020"]


def test_another_base_is_refused_by_its_key(tmp_path):
    found = read_checkpoint(_save(tmp_path, 1))
    found.check_base(BASE)
    with pytest.raises(UserError, match=r"^model\.language_model: .*step-00000010 was trained on another one"):
        found.check_base({**BASE, "model.language_model": "1e"})


def test_the_same_base_stored_in_another_form_is_warned_of(tmp_path, recwarn):
    """A recipe of before there were forms is of the whole base, and one of before nf4_scales has the largest."""
    fitted, largest = ({"quantize": "nf4", "nf4_scales": scales} for scales in ("fitted", "largest"))
    int8, none, older = {"quantize": "int8"}, {"quantize": "none"}, {"quantize": "nf4"}
    pairs = [(int8, int8), ({}, none), (older, largest), (int8, none), ({}, fitted), (older, fitted)]
    for number, (trained, now) in enumerate(pairs, 1):
        found = read_checkpoint(_save(tmp_path, number, recipe={"model": trained, "method": {}}))
        found.check_quantized({"model": now})
    said = [str(warning.message) for warning in recwarn if "model.quantize" in str(warning.message)]
    assert len(said) == 3
    assert "is none, and " in said[0] and "was trained with int8" in said[0]
    assert "is nf4 with fitted scales, and " in said[1] and "was trained with none" in said[1]
    assert "is nf4 with fitted scales, and " in said[2] and "was trained with nf4 with largest scales" in said[2]


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"state\.json does not exist"):
        read_checkpoint(tmp_path)


def test_the_state_is_plain_json(tmp_path):
    assert json.loads((_save(tmp_path, 3) / "state.json").read_text())["epoch"] == 3


def _recipe(method: str = "memvp", vision=None, **settings) -> dict:
    """As `as_dict` makes it, of these settings."""
    made = Recipe(name="x", method=method_settings(method, **settings), vision=Vision(**(vision or {})))
    return as_dict(made)


def test_another_method_is_refused_by_its_key(tmp_path):
    trained_with = _recipe(visual_scale=0.02, slots=4)
    found = read_checkpoint(_save(tmp_path, 1, recipe=trained_with))
    found.check_method(trained_with)
    with pytest.raises(UserError, match=r"method\.visual_scale: is 0\.1, but .* was trained with 0\.02"):
        found.check_method(_recipe(visual_scale=0.1, slots=4))
    with pytest.raises(UserError, match=r"method\.name: is input_space, but .* was trained with memvp"):
        found.check_method(_recipe("input_space"))
    with pytest.raises(UserError, match=r"vision\.adapter_dim: is 3, but .* was trained with 12"):
        found.check_method(_recipe(visual_scale=0.02, slots=4, vision={"adapter_dim": 3}))
    # which images are refused changes nothing in what was trained
    found.check_method(_recipe(visual_scale=0.02, slots=4, vision={"max_pixels": 9}))


def test_a_setting_that_was_added_later_has_had_its_default(tmp_path):
    older = _recipe(slots=4)
    del older["method"]["output_scale"], older["vision"]["adapter_scale"]
    found = read_checkpoint(_save(tmp_path, 1, recipe=older))
    found.check_method(_recipe(slots=4))
    with pytest.raises(UserError, match=r"method\.output_scale: is 2\.0, but .* was trained with 0\.1"):
        found.check_method(_recipe(slots=4, output_scale=2.0))
    with pytest.raises(UserError, match=r"vision\.adapter_scale: is 2\.0, but .* was trained with 0\.1"):
        found.check_method(_recipe(slots=4, vision={"adapter_scale": 2.0}))


def test_settings_of_other_methods_are_not_compared(tmp_path):
    """Checkpoints held those of all methods once."""
    older = _recipe(slots=4)
    older["method"] |= {"lora_rank": 3, "lora_alpha": 1.0, "lora_targets": []}
    read_checkpoint(_save(tmp_path, 1, recipe=older)).check_method(_recipe(slots=4))


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
    with pytest.raises(UserError, match=message):
        found.check_order({**ORDER, **changed})


def test_a_file_of_trained_tensors_alone_can_be_evaluated(tmp_path):
    folder = _save(tmp_path, 1)
    found = read_checkpoint(folder / "trained.safetensors")
    assert found.values(SHAPES).keys() == VALUES.keys()
