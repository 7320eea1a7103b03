"""Whole float32 values and Adam moments of the trained tensors, in and out of DeepSpeed's partitions.

The optimizer works on flat float32 tensors of which each rank has a piece; the module computes on copies in the
recipe's type, which stay stale unless they are set together with the master weights. How the pieces are cut depends
on the ZeRO stage: one class for each way, with the same methods.
"""

from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import nn

from dsmemvp.backbones.partitioned import element_range, fill, is_partitioned, whole_shape
from dsmemvp.checkpoints.checkpoint import MOMENTS, Tensors


class PartitionedMasterWeights:
    """Under ZeRO-3: of each tensor a piece of ceil(numel / ranks) elements, padded on the last rank.

    Get is a collective: all ranks must call it. Setting must come before the first forward or after an update."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine, trainables: dict[str, nn.Parameter]):
        self._zero, self._trainables = engine.optimizer, trainables

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the whole tensors; no communication."""
        return {name: whole_shape(p) for name, p in self._trainables.items()}

    def values(self) -> Tensors:
        """Whole float32 tensors on the CPU."""
        return {name: safe_get_full_fp32_param(p).cpu() for name, p in self._trainables.items()}

    def moments(self) -> Tensors:
        """Whole Adam moments under "name.exp_avg" and "name.exp_avg_sq"; only after `set_moments`."""
        return {
            f"{name}.{moment}": safe_get_full_optimizer_state(p, moment).cpu()
            for name, p in self._trainables.items()
            for moment in MOMENTS
        }

    def updates(self) -> int:
        """How many updates Adam has made."""
        return _updates(self._zero, self._zero.fp32_partitioned_groups_flat)

    def set(self, values: Tensors) -> None:
        for name, parameter in self._trainables.items():
            safe_set_local_fp32_param(parameter, _local(parameter, values[name]))
            set_module_value(parameter, values[name])

    def set_moments(self, moments: Tensors, updates: int) -> None:
        """Adam's state as after so many updates; a moment that is not given is zero."""
        _make_states(self._zero, self._zero.fp32_partitioned_groups_flat, updates)
        for name, parameter in self._trainables.items():
            for moment in MOMENTS:
                whole = moments.get(f"{name}.{moment}")
                if whole is None:
                    whole = torch.zeros(whole_shape(parameter))
                safe_set_local_optimizer_state(parameter, _local(parameter, whole), moment)


class ReplicatedMasterWeights:
    """Under ZeRO-1 and 2: all tensors of an optimizer group laid one after another, and that cut into one piece per
    rank; a tensor may lie in several pieces. Methods as above."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine, trainables: dict[str, nn.Parameter]):
        self._zero, self._trainables = engine.optimizer, trainables
        self._flats = [group["params"][0] for group in self._zero.optimizer.param_groups]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(p.shape) for name, p in self._trainables.items()}

    def values(self) -> Tensors:
        return {name: self._whole(p, self._flats) for name, p in self._trainables.items()}

    def moments(self) -> Tensors:
        whole: Tensors = {}
        for moment in MOMENTS:
            flats = [self._zero.optimizer.state[flat][moment] for flat in self._flats]
            whole |= {f"{name}.{moment}": self._whole(p, flats) for name, p in self._trainables.items()}
        return whole

    def updates(self) -> int:
        return _updates(self._zero, self._flats)

    def set(self, values: Tensors) -> None:
        for name, parameter in self._trainables.items():
            self._set(parameter, self._flats, values[name])
            set_module_value(parameter, values[name])

    def set_moments(self, moments: Tensors, updates: int) -> None:
        _make_states(self._zero, self._flats, updates)
        for name, parameter in self._trainables.items():
            for moment in MOMENTS:
                flats = [self._zero.optimizer.state[flat][moment] for flat in self._flats]
                self._set(parameter, flats, moments.get(f"{name}.{moment}"))

    def _whole(self, parameter: nn.Parameter, flats: list[torch.Tensor]) -> torch.Tensor:
        whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
        piece, place = _fragment(parameter, flats)
        whole[place : place + piece.numel()] = piece
        torch.distributed.all_reduce(whole)
        return whole.view(parameter.shape).cpu()

    def _set(self, parameter: nn.Parameter, flats: list[torch.Tensor], whole: torch.Tensor | None) -> None:
        piece, place = _fragment(parameter, flats)
        if whole is None:
            piece.zero_()
        else:
            piece.copy_(whole.reshape(-1)[place : place + piece.numel()])


def set_module_value(parameter: nn.Parameter, whole: torch.Tensor) -> None:
    """What the module computes with, rounded to its type; before the first forward or after an update."""
    if is_partitioned(parameter):
        start, stop = element_range(parameter)
        fill(parameter, whole.reshape(-1)[start:stop])
    else:
        parameter.data.copy_(whole)


MasterWeights = PartitionedMasterWeights | ReplicatedMasterWeights


def _fragment(parameter: Any, flats: list[torch.Tensor]) -> tuple[torch.Tensor, int]:
    """(this rank's part of a tensor, where it begins in the tensor); DeepSpeed has noted both at the parameter."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return flats[0].data[:0], 0
    address = mapping.hp_fragment_address
    piece = flats[mapping.param_group_index].data.narrow(0, address.start, address.numel)
    return piece, mapping.lp_fragment_address.start


def _make_states(zero: Any, flats: list[torch.Tensor], updates: int) -> None:
    for flat in flats:
        state = zero.optimizer.state[flat]
        state["step"] = torch.tensor(float(updates), device=flat.device if flat.is_cuda else "cpu")
        for moment in MOMENTS:
            state.setdefault(moment, torch.zeros_like(flat))


def _updates(zero: Any, flats: list[torch.Tensor]) -> int:
    return int(zero.optimizer.state[flats[0]]["step"])


def _local(parameter: Any, whole: torch.Tensor) -> torch.Tensor:
    """This rank's padded partition of a whole tensor."""
    start, stop = element_range(parameter)
    held = parameter.ds_tensor
    local = torch.zeros(held.ds_numel, dtype=torch.float32, device=held.device)
    local[: stop - start] = whole.reshape(-1)[start:stop].to(local)
    return local
