"""Whole float32 values and Adam moments of the trained tensors, in and out of DeepSpeed's partitions.

Under ZeRO-3 the optimizer works on flat float32 partitions of ceil(numel / ranks) elements per tensor, padded on the
last rank; the module computes on 16-bit copies, which stay stale unless they are set together with the masters.
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

from dsmemvp.models.partitioned import element_range, fill, whole_shape
from dsmemvp.training.checkpoint import MOMENTS, Tensors


class Masters:
    """Get is a collective: all ranks must call it. Setting must come before the first forward or after an update."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine, trainables: dict[str, nn.Parameter]):
        self._engine, self._trainables = engine, trainables

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the whole tensors; no communication."""
        return {name: whole_shape(p) for name, p in self._trainables.items()}

    def values(self) -> Tensors:
        """Whole float32 tensors on the CPU."""
        return {name: safe_get_full_fp32_param(p).cpu() for name, p in self._trainables.items()}

    def moments(self) -> Tensors:
        """Whole Adam moments under "name.exp_avg" and "name.exp_avg_sq"; only after the first update."""
        return {
            f"{name}.{moment}": safe_get_full_optimizer_state(p, moment).cpu()
            for name, p in self._trainables.items()
            for moment in MOMENTS
        }

    def set(self, values: Tensors) -> None:
        for name, parameter in self._trainables.items():
            safe_set_local_fp32_param(parameter, _local(parameter, values[name]))
            start, stop = element_range(parameter)
            fill(parameter, values[name].reshape(-1)[start:stop])

    def set_moments(self, moments: Tensors, step: int) -> None:
        """Adam's state as after `step` updates."""
        zero = self._engine.optimizer
        for flat in zero.fp32_partitioned_groups_flat:
            state = zero.optimizer.state[flat]
            state["step"] = torch.tensor(float(step), device=flat.device if flat.is_cuda else "cpu")
            for moment in MOMENTS:
                state.setdefault(moment, torch.zeros_like(flat))
        for name, parameter in self._trainables.items():
            for moment in MOMENTS:
                safe_set_local_optimizer_state(parameter, _local(parameter, moments[f"{name}.{moment}"]), moment)


def _local(parameter: Any, whole: torch.Tensor) -> torch.Tensor:
    """This rank's padded partition of a whole tensor."""
    start, stop = element_range(parameter)
    held = parameter.ds_tensor
    local = torch.zeros(held.ds_numel, dtype=torch.float32, device=held.device)
    local[: stop - start] = whole.reshape(-1)[start:stop].to(local)
    return local
