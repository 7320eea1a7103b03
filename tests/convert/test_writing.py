"""Folders are whole or look like none, and are written again by the same command."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, LlamaConfig

from dsmemvp.convert.lazy import LazyTensor
from dsmemvp.convert.writing import check_folder, write_model, write_safetensors
from dsmemvp.errors import UserError
from dsmemvp.progress import Progress


def _lazy(tensor: torch.Tensor) -> LazyTensor:
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor)


TENSORS = {f"t{i}": torch.full((4, 5), float(i)) for i in range(5)}  # 80 bytes each


def _write(folder, shard_bytes=200, tensors=TENSORS) -> None:
    write_model(folder, {name: _lazy(t) for name, t in tensors.items()}, LlamaConfig(), shard_bytes)


def test_safetensors_own_reader_reads_every_type(tmp_path):
    types = (
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int64,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
    given = {str(dtype): torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype) for dtype in types}
    given |= {"empty": torch.ones(0, 3), "one": torch.tensor(2.5), "turned": torch.arange(6.0).view(2, 3).t()}
    write_safetensors(tmp_path / "x.safetensors", {n: _lazy(t) for n, t in given.items()}, Progress("x", 1, "B"))
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == given.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in given.items())
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    header = int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little")
    assert header % 8 == 0


def test_files_are_as_large_as_asked_for_and_what_was_there_is_replaced(tmp_path):
    _write(tmp_path)
    (tmp_path / "own.txt").write_text("the user's")
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == names
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index == {"metadata": {"total_size": 400}, "weight_map": {f"t{i}": names[i // 2] for i in range(5)}}
    _write(tmp_path, 1000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors", "own.txt"]
    assert all(torch.equal(t, TENSORS[n]) for n, t in load_file(tmp_path / "model.safetensors").items())


def test_what_was_there_stays_until_the_new_is_whole(tmp_path):
    _write(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def ends() -> torch.Tensor:
        assert not (tmp_path / "partial-conversion" / "config.json").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_model(tmp_path, {"t": LazyTensor((4,), torch.float32, ends)}, LlamaConfig(), 1000)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_conversion_killed_at_any_place_leaves_no_config_without_its_weights(tmp_path, monkeypatch):
    """A kill cleans nothing up: neither removal of the partial folder nor the remaining moves happen."""
    from pathlib import Path

    replace, moved = Path.replace, []

    def killed(self, target):
        if len(moved) == 2:
            raise SystemExit
        moved.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    monkeypatch.setattr("shutil.rmtree", lambda *a, **k: None)
    with pytest.raises(SystemExit):
        _write(tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "config.json").exists() and (tmp_path / "partial-conversion").exists()
    _write(tmp_path)
    assert (tmp_path / "config.json").exists() and not (tmp_path / "partial-conversion").exists()


def test_another_model_is_not_written_over(tmp_path):
    check_folder(tmp_path, LlamaConfig())
    _write(tmp_path)
    check_folder(tmp_path, LlamaConfig())
    with pytest.raises(UserError, match=r"holds another model \(num_hidden_layers 32\); give another folder in --out"):
        check_folder(tmp_path, LlamaConfig(num_hidden_layers=3))
    with pytest.raises(UserError, match=r"holds another model \(model_type llama\)"):
        check_folder(tmp_path, CLIPVisionConfig())
