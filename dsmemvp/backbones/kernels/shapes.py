"""The kernels on the meta device, where a step is traced as it runs on a GPU (planning/trace.py): each is one operation
of torch, `torch.ops.dsmemvp.NAME`, that gives tensors of the right shape and type. Needs no triton."""

from typing import Any

import torch

_like = torch.empty_like
_SHAPES: dict[str, Any] = {
    "rms_norm(Tensor x, Tensor weight, float eps) -> Tensor": lambda x, weight, eps: _like(x),
    "rms_norm_backward(Tensor gradient, Tensor x, Tensor weight, float eps) -> Tensor": (
        lambda gradient, x, weight, eps: _like(x)
    ),
    "rotate(Tensor x, Tensor cos, Tensor sin, bool inverse=False) -> Tensor": (
        lambda x, cos, sin, inverse=False: _like(x)
    ),
    "silu_mul(Tensor gate, Tensor up) -> Tensor": lambda gate, up: _like(gate),
    "silu_mul_backward(Tensor gradient, Tensor gate, Tensor up) -> (Tensor, Tensor)": (
        lambda gradient, gate, up: (_like(gate), _like(up))
    ),
    "slot_activation(Tensor scores, Tensor keys, float p) -> Tensor": lambda scores, keys, p: _like(scores),
    "slot_activation_backward(Tensor gradient, Tensor scores, Tensor keys, float p) -> Tensor": (
        lambda gradient, scores, keys, p: _like(scores)
    ),
}

_library = torch.library.Library("dsmemvp", "DEF")
for _schema, _shape in _SHAPES.items():
    _library.define(_schema)
    _library.impl(_schema.partition("(")[0], _shape, "Meta")

operations = torch.ops.dsmemvp
