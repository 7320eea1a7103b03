"""Filling parameters that DeepSpeed ZeRO-3 has partitioned, and plain ones, through the same functions.

A partitioned parameter keeps on each rank `ds_tensor`: a flat run of ceil(numel / ranks) elements of the whole, the
last rank's padded; under hpZ also `ds_secondary_tensor`, cut in the same way over the ranks of a node. This file is all
that backbones/ knows of DeepSpeed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import distributed, nn

from dsmemvp.errors import UserError


def is_partitioned(parameter: Any) -> bool:
    """Whether this process may hold a part of it only."""
    return hasattr(parameter, "ds_tensor")


def whole_shape(parameter: Any) -> tuple[int, ...]:
    """The shape of the whole tensor, of which this process may hold a part; no communication."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def element_range(parameter: Any) -> tuple[int, int]:
    """The elements [start, stop) of the flattened tensor that this process holds; `parameter` is an nn.Parameter,
    which ZeRO-3 may have given its attributes."""
    if not is_partitioned(parameter):
        return 0, parameter.numel()
    return _range(parameter, parameter.ds_tensor, parameter.ds_process_group)


def held_pieces(parameter: Any) -> list[tuple[int, torch.Tensor]]:
    """All that this process holds of the flattened tensor: (first element, its elements without padding), once, or
    under hpZ twice. What is written into them is in the parameter. Raises UserError for what cannot be written."""
    if not hasattr(parameter, "ds_tensor"):
        return [(0, parameter.data.view(-1))]
    held = [(parameter.ds_tensor, parameter.ds_process_group)]
    if getattr(parameter, "ds_secondary_tensor", None) is not None:
        held.append((parameter.ds_secondary_tensor, parameter.ds_zero_param_process_group))
    pieces: list[tuple[int, torch.Tensor]] = []
    for tensor, group in held:
        if tensor.numel() != tensor.ds_numel or tensor.dtype != parameter.dtype:
            raise UserError(
                "training.deepspeed: weights cannot be loaded into quantized partitions or onto NVMe; take out"
                " zero_quantized_nontrainable_weights, and offload_param's device nvme"
            )
        start, stop = _range(parameter, tensor, group)
        pieces.append((start, tensor.data[: stop - start]))
    return pieces


def fill(parameter: Any, values: torch.Tensor) -> None:
    """Set the elements of `element_range`; `values` is flat, of any floating type."""
    if getattr(parameter, "ds_secondary_tensor", None) is not None:
        # hpZ's copy inside the node is out of date; without it the next gather goes over all ranks and makes a new one
        parameter.ds_secondary_tensor = None
    with torch.no_grad():
        held = parameter.ds_tensor.data if hasattr(parameter, "ds_tensor") else parameter.data.view(-1)
        held[: values.numel()].copy_(values)


def fill_randomly(model: nn.Module, *_unused: Any) -> None:
    """In place of loading, if only sizes matter (benchmarks, tests): matrices small, weights of norms one."""
    for name, parameter in model.named_parameters():
        for _, piece in held_pieces(parameter):
            if piece.dtype == torch.uint8:
                piece.random_(256)
            elif name.endswith("weight_scale"):
                piece.fill_(0.02 / 64)  # codes of int8 are about as large as 64
            elif len(whole_shape(parameter)) > 1:
                piece.normal_(std=0.02)
            else:
                piece.fill_(float(name.endswith("weight")))


def give_memory(
    model: nn.Module, device: torch.device, partition: Callable[[nn.Parameter], None] | None = None
) -> None:
    """Put parameters without values on `device` in place of those on the meta device; a shared one stays shared.
    `partition` keeps a part of each frozen one and frees the rest, so that they are whole one after another, in the
    same memory; on a CPU that memory is never written and therefore not even resident. Those to be trained stay whole
    until there is an optimizer for them."""
    whole = max((parameter.nbytes for parameter in model.parameters()), default=0) if partition else 0
    memory = torch.empty(whole, dtype=torch.uint8, device=device)
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            if empty not in made and partition and not empty.requires_grad:
                place = memory[: empty.nbytes].view(empty.dtype).view(empty.shape)
                made[empty] = nn.Parameter(place, requires_grad=empty.requires_grad)
                partition(made[empty])
            elif empty not in made:
                own = torch.empty_like(empty, device=device)
                made[empty] = nn.Parameter(own, requires_grad=empty.requires_grad)
            setattr(module, name, made[empty])


def _range(parameter: Any, held: Any, group: Any) -> tuple[int, int]:
    start = min(distributed.get_rank(group) * held.ds_numel, parameter.ds_numel)
    return start, min(start + held.ds_numel, parameter.ds_numel)
