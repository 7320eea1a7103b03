"""Published MemVP checkpoints -> ours and back; files that are none."""

import argparse

import pytest
import torch
from reference import OPTIONS, Recording
from safetensors.torch import load_file, save_file

from dsmemvp.checkpoints.checkpoint import read_checkpoint
from dsmemvp.convert.convert import Options, convert
from dsmemvp.convert.files import tensors_in
from dsmemvp.convert.llama import halves_from_pairs
from dsmemvp.errors import UserError
from dsmemvp.prompts.memvp.published import Published


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


def published() -> dict[str, torch.Tensor]:
    """What a published checkpoint holds: trained tensors of three vision blocks, slots and width 5 and 4."""
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


def _convert(tensors: dict[str, torch.Tensor], folder) -> dict[str, torch.Tensor]:
    torch.save({"model": tensors}, folder / "file.pth")
    convert(folder / "file.pth", folder / "out")
    return load_file(folder / "out" / "trained.safetensors")


def test_a_pth_file_with_its_command_line_is_converted_to_what_a_forward_pass_uses(tmp_path):
    options = argparse.Namespace(emb=5, adapter_scale=0.1, lr=9e-3)
    content = {"model": published(), "args": options, "epoch": 19}
    torch.save(content, tmp_path / "checkpoint-19.pth")
    said = convert(tmp_path / "checkpoint-19.pth", tmp_path / "out")
    assert any("adapter_modality_embedding" in line for line in said)
    assert said[-1] == "trained with method.slots=5, method.output_scale=0.1"
    checkpoint = read_checkpoint(tmp_path / "out" / "trained.safetensors")
    checkpoint.check_method({"method": {"slots": 5, "output_scale": 0.1}})
    with pytest.raises(
        ValueError, match=r"^method\.output_scale: is 1\.0, but .*trained\.safetensors was trained with 0\.1"
    ):
        checkpoint.check_method({"method": {"slots": 5, "output_scale": 1.0}})
    found = load_file(tmp_path / "out" / "trained.safetensors")
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


def test_the_way_back_has_the_published_names_and_shapes_and_zeros_for_what_is_not_used(tmp_path):
    ours = _convert(published(), tmp_path)
    back = Published().published_names(ours)
    assert {name: t.shape for name, t in back.items()} == {name: t.shape for name, t in published().items()}
    unused = [name for name in back if "modality" in name or "resblocks.2" in name]
    assert len(unused) == 3 and not any(back[name].any() for name in unused)
    assert all(torch.equal(back[name], t) for name, t in published().items() if name not in unused)
    again = _convert(back, tmp_path)
    assert again.keys() == ours.keys() and all(torch.equal(again[name], ours[name]) for name in ours)


def test_tensors_without_a_published_name_are_refused(tmp_path):
    ours = _convert(published(), tmp_path)
    with pytest.raises(UserError, match=r"language\.layers\.0\.q_proj\.lora has no place in the published layout"):
        Published().published_names({**ours, "language.layers.0.q_proj.lora": torch.ones(1)})
    with pytest.raises(UserError, match=r"vision\.adapter_dim: is 0"):
        Published().published_names({name: t for name, t in ours.items() if "adapter" not in name})


def test_a_pth_file_converts_as_the_recording_does(shared, tmp_path):
    """The recording is a safetensors file; the same tensors as published, with "module.", in torch's format."""
    recording = Recording(shared, tmp_path / "ours")
    recording.write(shared)
    tensors = {f"module.{name[2:]}": t for name, t in recording.tensors.items() if name.startswith("w.")}
    torch.save(tensors, tmp_path / "all.pth")
    convert(tmp_path / "all.pth", tmp_path / "theirs", OPTIONS)
    for name in ("language_model/model.safetensors", "vision_tower/model.safetensors", "trained.safetensors"):
        one, other = load_file(tmp_path / "ours" / name), load_file(tmp_path / "theirs" / name)
        assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_tensors_that_share_or_reorder_their_storage_are_read_as_they_are(tmp_path):
    base = torch.arange(24.0).view(4, 6)
    given = {"whole": base, "part": base[1:3], "turned": base.t(), "none": base[:0], "one": torch.tensor(5)}
    torch.save(given, tmp_path / "views.pth")
    found = {name: t.read() for name, t in tensors_in(tmp_path / "views.pth").items()}
    assert all(torch.equal(found[name], t) and found[name].shape == t.shape for name, t in given.items())


class _Harmful:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pth_file_with_code_in_it_is_refused_and_does_not_run(tmp_path, capsys):
    torch.save({"model": {}, "args": _Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="is refused: it holds more than tensors"):
        tensors_in(tmp_path / "bad.pth")
    assert "code ran" not in capsys.readouterr().out


def test_missing_damaged_and_foreign_files_are_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        tensors_in(tmp_path / "nowhere.safetensors")
    for name in ("bad.safetensors", "bad.pth"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(UserError, match=name):
            tensors_in(tmp_path / name)
    save_file({"a": torch.ones(100)}, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"cut\.safetensors is not a readable safetensors file \(its tensors end at"):
        tensors_in(tmp_path / "cut.safetensors")
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds no tensors of a LLaMA, a CLIP or a method"):
        convert(tmp_path / "other.pth", tmp_path / "out")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a list instead of named tensors"):
        convert(tmp_path / "list.pth", tmp_path / "out")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"holds neither consolidated\.\*\.pth nor pytorch_model\*\.bin"):
        convert(tmp_path / "folder", tmp_path / "out")


def test_what_a_file_leaves_open_is_said_and_what_no_llama_has_is_refused(shared, tmp_path):
    recording = Recording(shared, tmp_path / "ours")
    tensors = {n[2:]: t for n, t in recording.tensors.items() if n.startswith("w.") and not n.startswith("w.adapter")}
    tensors = {n: t for n, t in tensors.items() if "visual" not in n}
    save_file(tensors, tmp_path / "llama.safetensors")
    [first, second] = convert(tmp_path / "llama.safetensors", tmp_path / "out", OPTIONS)
    assert first.endswith("out") and "heads (--language-heads)" in second and "rotary base of 10000" in second
    save_file(tensors | {"layers.0.attention.wq.bias": torch.ones(2)}, tmp_path / "llama.safetensors")
    with pytest.raises(UserError, match=r"layers\.0\.attention\.wq\.bias is no tensor of a LLaMA"):
        convert(tmp_path / "llama.safetensors", tmp_path / "out", OPTIONS)


def test_a_single_piece_of_metas_is_sent_to_its_folder(tmp_path):
    torch.save({"tok_embeddings.weight": torch.ones(4, 4)}, tmp_path / "consolidated.00.pth")
    (tmp_path / "params.json").write_text("{}")
    with pytest.raises(UserError, match="is a piece of a model; give its folder"):
        convert(tmp_path / "consolidated.00.pth", tmp_path / "out")


@pytest.mark.parametrize(
    ("option", "value"), [("language_heads", 0), ("vision_heads", -1), ("eps", 0.0), ("eps", float("nan"))]
)
def test_options_that_cannot_be_are_refused(option, value):
    with pytest.raises(UserError, match="must be above zero"):
        Options(**{option: value})
