"""Filling parameters that DeepSpeed ZeRO-3 has partitioned, and plain ones, through one pair of functions.

A partitioned parameter keeps on each rank `ds_tensor`: a flat run of ceil(numel / ranks) elements of the whole, the
last rank's padded. This file is all that models/ knows of DeepSpeed.
"""

from typing import Any

import torch
from torch import distributed


def whole_shape(parameter: Any) -> tuple[int, ...]:
    """The shape of the whole tensor, of which this process may hold a part; no communication."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def element_range(parameter: Any) -> tuple[int, int]:
    """The elements [start, stop) of the flattened tensor that this process holds; `parameter` is an nn.Parameter,
    which ZeRO-3 may have given its attributes."""
    if not hasattr(parameter, "ds_tensor"):
        return 0, parameter.numel()
    size = parameter.ds_tensor.ds_numel
    start = min(distributed.get_rank(parameter.ds_process_group) * size, parameter.ds_numel)
    return start, min(start + size, parameter.ds_numel)


def fill(parameter: Any, values: torch.Tensor) -> None:
    """Set the elements of `element_range`; `values` is flat, of any floating type."""
    if getattr(parameter, "ds_secondary_tensor", None) is not None:
        # hpZ's copy inside the node is out of date; without it the next gather goes over all ranks and makes a new one
        parameter.ds_secondary_tensor = None
    with torch.no_grad():
        held = parameter.ds_tensor.data if hasattr(parameter, "ds_tensor") else parameter.data.view(-1)
        held[: values.numel()].copy_(values)
