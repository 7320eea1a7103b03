"""A DINOv2 backbone inside of an ONNX graph that torch has exported -> transformers' published names.

Most tensors keep their names, behind the name of the module that holds the backbone. The exporter has renamed what it
has changed: weights of linear layers, transposed, and the two parts of the position embeddings. A weight's layer is
known by the name of the MatMul that multiplies with it, the positions by their shapes.
"""

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Dinov2Config

from dsmemvp.convert.lazy import LazyTensor, Tensors
from dsmemvp.errors import UserError

CLASS_TOKEN = "embeddings.cls_token"
PATCHES = "embeddings.patch_embeddings.projection.weight"
INNER = "encoder.layer.0.mlp.fc1.weight"
HEAD_WIDTH = 64
"""Of all published DINOv2."""
FLOATS = {1: torch.float32, 10: torch.float16, 16: torch.bfloat16}
"""ONNX's numbers of types."""


def onnx_vision_tower(path: Path) -> tuple[Tensors, Dinov2Config]:
    """Raises UserError for a file that is none, or holds no DINOv2 with MLPs (the giant has gated ones)."""
    graph = _graph(path)
    stored = {each.name: each for each in graph.initializer}
    front = next((name.removesuffix(CLASS_TOKEN) for name in stored if name.endswith(CLASS_TOKEN)), None)
    if front is None or front + PATCHES not in stored:
        raise UserError(f"{path} holds no DINOv2 backbone: no {CLASS_TOKEN} and {PATCHES} among its initializers")
    tensors: Tensors = {
        name.removeprefix(front): _lazy(path, each) for name, each in stored.items() if name.startswith(front)
    }
    scope = front.rstrip(".").replace(".", "/")
    for node in graph.node:
        found = re.fullmatch(rf"/{re.escape(scope)}/(encoder/layer\.\d+/.+)/MatMul".replace("//", "/"), node.name)
        if node.op_type == "MatMul" and found and node.input[1] in stored:
            whole = _lazy(path, stored[node.input[1]])
            name = f"{found[1].replace('/', '.')}.weight"
            tensors[name] = whole.changed(lambda t: t.T.contiguous(), whole.shape[::-1])
    tensors["embeddings.position_embeddings"] = _positions(path, stored, tensors[CLASS_TOKEN].shape, front)
    width, _, patch, _ = tensors[PATCHES].shape
    tensors["embeddings.mask_token"] = LazyTensor((1, width), torch.float32, lambda: torch.zeros(1, width))
    if INNER not in tensors or width % HEAD_WIDTH:
        raise UserError(f"{path} holds no DINOv2 backbone of transformers' names: {INNER} is missing")
    side = math.isqrt(tensors["embeddings.position_embeddings"].shape[1] - 1)
    config = Dinov2Config(
        architectures=["Dinov2Model"],
        hidden_size=width,
        num_hidden_layers=len({name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")}),
        num_attention_heads=width // HEAD_WIDTH,
        mlp_ratio=tensors[INNER].shape[0] // width,
        image_size=side * patch,
        patch_size=patch,
    )
    return tensors, config


def _graph(path: Path) -> Any:
    try:
        import onnx
    except ModuleNotFoundError:
        raise UserError("source: an ONNX file needs the package onnx; pip install onnx") from None
    try:
        return onnx.load(str(path), load_external_data=False).graph
    except OSError:
        raise
    except Exception as error:  # protobuf's and onnx's own
        raise UserError(f"{path} cannot be read as an ONNX file: cut off or damaged ({error})") from None


def _positions(path: Path, stored: dict[str, Any], token: tuple[int, ...], front: str) -> LazyTensor:
    """[1, 1 + side^2, width]: whole, or the class token's and the patches', which the exporter has cut apart."""
    width = token[-1]
    if whole := stored.get(f"{front}embeddings.position_embeddings"):
        return _lazy(path, whole)
    constants = [(tuple(each.dims), each) for name, each in stored.items() if not name.startswith(front)]
    first = [each for shape, each in constants if shape == (1, 1, width)]
    rest = [
        each for shape, each in constants if len(shape) == 3 and shape[::2] == (1, width) and math.isqrt(shape[1]) > 1
    ]
    if len(first) != 1 or len(rest) != 1 or math.isqrt(rest[0].dims[1]) ** 2 != rest[0].dims[1]:
        raise UserError(f"{path} holds no position embeddings of a DINOv2, or more than one")
    parts = [_lazy(path, first[0]), _lazy(path, rest[0])]
    shape = (1, 1 + rest[0].dims[1], width)
    return LazyTensor(shape, parts[1].dtype, lambda: torch.cat([part.read() for part in parts], dim=1))


def _lazy(path: Path, stored: Any) -> LazyTensor:
    if stored.data_type not in FLOATS or stored.external_data:
        raise UserError(f"{path}: {stored.name} lies in another file, or is of a type that is not read")
    return LazyTensor(tuple(stored.dims), FLOATS[stored.data_type], partial(_values, path, stored))


def _values(path: Path, stored: Any) -> torch.Tensor:
    from onnx import numpy_helper

    try:
        values = numpy_helper.to_array(stored)
    except Exception as error:
        raise UserError(f"{path} is damaged: {stored.name} is not whole ({error})") from None
    if stored.data_type == 16:
        return torch.from_numpy(values.astype("float32")).to(torch.bfloat16)
    return torch.from_numpy(values.copy())
