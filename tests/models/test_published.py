"""Published layouts -> ours."""

import argparse

import pytest
import torch
from safetensors.torch import load_file

from dsmemvp.models.published import halves_from_pairs, import_published, read_published, trained_weights


def test_rotary_pairs_become_halves():
    """Attention scores must not change: Meta turns (2i, 2i+1) as a complex number, transformers (i, i + half)."""
    heads, dim, width, position = 2, 8, 16, 5
    torch.manual_seed(0)
    weight, x = torch.randn(heads * dim, width, dtype=torch.float64), torch.randn(width, dtype=torch.float64)
    angles = position / 10000 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    pairs = torch.view_as_complex((weight @ x).view(heads, dim // 2, 2))
    metas = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles))

    q = (halves_from_pairs(weight, dim) @ x).view(heads, dim)
    cos, sin = angles.cos().repeat(2), angles.sin().repeat(2)
    rotated = q * cos + torch.cat([-q[:, dim // 2 :], q[:, : dim // 2]], 1) * sin
    torch.testing.assert_close(rotated.view(heads, 2, dim // 2).transpose(1, 2), metas)


def _checkpoint() -> dict[str, torch.Tensor]:
    adapter = {
        f"module.backbone.visual.transformer.resblocks.{b}.adapter_mlp.fc{i}.weight": torch.full((2, 2), float(b))
        for b in range(3)
        for i in (1, 2)
    }
    return adapter | {
        "module.adapter_emb1": torch.ones(1, 5, 4),
        "module.adapter_emb2": torch.zeros(1, 5, 4),
        "module.adapter_proj.fc1.weight": torch.ones(3, 6),
        "module.adapter_modality_embedding.weight": torch.ones(2, 4),
    }


def test_a_published_checkpoint_keeps_what_a_forward_pass_uses():
    stripped = {name.removeprefix("module."): t for name, t in _checkpoint().items()}
    found = trained_weights(stripped)
    assert sorted(found) == [
        "method.key_positions",
        "method.projector.fc1.weight",
        "method.value_positions",
        "vision.layers.0.adapter.down.weight",
        "vision.layers.0.adapter.up.weight",
        "vision.layers.1.adapter.down.weight",
        "vision.layers.1.adapter.up.weight",
    ]
    assert found["method.key_positions"].shape == (5, 4)
    assert found["vision.layers.1.adapter.up.weight"][0, 0] == 1


def test_a_pth_file_with_its_command_line_is_imported(tmp_path):
    content = {"model": _checkpoint(), "args": argparse.Namespace(emb=5), "epoch": 19}
    torch.save(content, tmp_path / "checkpoint-19.pth")
    said = import_published(tmp_path / "checkpoint-19.pth", tmp_path / "out", 2, 2, 1e-6)
    assert len(load_file(tmp_path / "out" / "trained.safetensors")) == 7
    assert any("adapter_modality_embedding" in line for line in said)


class _Harmful:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pth_file_with_code_in_it_is_refused_and_does_not_run(tmp_path, capsys):
    torch.save({"model": {}, "args": _Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="holds more than tensors and is refused"):
        read_published(tmp_path / "bad.pth")
    assert "code ran" not in capsys.readouterr().out


def test_missing_damaged_and_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_published(tmp_path / "nowhere.safetensors")
    for name in ("bad.safetensors", "bad.pth"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(ValueError, match=name):
            read_published(tmp_path / name)
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="holds no LLaMA, CLIP or MemVP tensors"):
        import_published(tmp_path / "other.pth", tmp_path / "out", 2, 2, 1e-6)
