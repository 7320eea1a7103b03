"""Whole float32 values and Adam moments of the trained tensors, in and out of DeepSpeed's partitions.

The optimizer works on flat float32 tensors, one for each group of parameters, of which every rank has a partition; the
module computes on copies in the recipe's type, which stay stale unless they are set together with the master weights.
How whole tensors are cut depends on the ZeRO stage; it is known from the start (`Place`), and everything else is the
same for all stages.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_local_fp32_param
from torch import nn

from dsmemvp.backbones.partitioned import element_range, fill, is_partitioned, whole_shape
from dsmemvp.checkpoints.checkpoint import MOMENTS, Tensors
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.training.gathering import Gathering


@dataclass(frozen=True)
class Place:
    """Where a whole tensor lies in the partitions of a group."""

    group: int
    runs: tuple[tuple[int, int], ...]
    """[start, stop) in the partitions of all ranks, laid one after another: the tensor's elements, in their order."""
    shape: tuple[int, ...]


class MasterWeights:
    """All ranks call the same methods. Setting must come before the first forward or after an update."""

    def __init__(
        self, engine: deepspeed.DeepSpeedEngine, trainables: dict[str, nn.Parameter], ranks: Ranks, partitioned: bool
    ):
        """`partitioned`: under ZeRO-3."""
        self._optimizer, self._trainables, self._ranks = engine.optimizer.optimizer, trainables, ranks
        if partitioned:
            own = engine.optimizer.fp32_partitioned_groups_flat
            self._places = {name: _place_in_pieces(p, own, ranks.world) for name, p in trainables.items()}
        else:
            own = [group["params"][0] for group in self._optimizer.param_groups]
            self._places = _places_in_one(trainables, own, ranks)
        self._keys: list[torch.Tensor] = own
        """This rank's partition of each group; the optimizer's state is found under them."""
        self._gathering = Gathering(ranks)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the whole tensors; no communication."""
        return {name: place.shape for name, place in self._places.items()}

    def values(self) -> Tensors:
        """Whole float32 tensors on the CPU, on every rank."""
        # not into the buffers of `gather`, which may be being written
        return self._whole(Gathering(self._ranks).to_all(self._values()))

    def gather(self) -> Callable[[], tuple[Tensors, Tensors]]:
        """Brings values and Adam's moments into the first rank's memory; only after `set_moments`. What it returns
        gives both there, moments under "name.exp_avg" and "name.exp_avg_sq": until the next `gather`, and in any
        thread."""
        kinds = [self._values(), *(self._moments(moment) for moment in MOMENTS)]
        held = self._gathering.to_first([flat for kind in kinds for flat in kind])

        def whole() -> tuple[Tensors, Tensors]:
            groups = len(self._keys)
            values, *of_moments = (self._whole(held[i : i + groups]) for i in range(0, len(held), groups))
            named = zip(MOMENTS, of_moments, strict=True)
            return values, {f"{name}.{moment}": t for moment, tensors in named for name, t in tensors.items()}

        return whole

    def updates(self) -> int:
        """How many updates Adam has made."""
        return int(self._optimizer.state[self._keys[0]]["step"])

    def set(self, values: Tensors) -> None:
        self._set(self._values(), values)
        for name, parameter in self._trainables.items():
            set_module_value(parameter, values[name])

    def set_moments(self, moments: Tensors, updates: int) -> None:
        """Adam's state as after so many updates; a moment that is not given is zero."""
        for key in self._keys:
            state = self._optimizer.state[key]
            state["step"] = torch.tensor(float(updates), device=key.device if key.is_cuda else "cpu")
            for moment in MOMENTS:
                state.setdefault(moment, torch.zeros_like(key))
        for moment in MOMENTS:
            given = {name: moments[f"{name}.{moment}"] for name in self._places if f"{name}.{moment}" in moments}
            self._set(self._moments(moment), given)

    def _values(self) -> list[torch.Tensor]:
        return [key.detach() for key in self._keys]

    def _moments(self, moment: str) -> list[torch.Tensor]:
        return [self._optimizer.state[key][moment] for key in self._keys]

    def _whole(self, partitions: Sequence[torch.Tensor]) -> Tensors:
        """[ranks, N] of each group -> tensors, views of them where they lie in one run."""
        return {name: _cut(partitions[place.group].view(-1), place) for name, place in self._places.items()}

    def _set(self, flats: Sequence[torch.Tensor], whole: Mapping[str, torch.Tensor]) -> None:
        """Fill this rank's partitions; what is not given, and what only pads, becomes zero."""
        for flat in flats:
            flat.zero_()
        for name, values in whole.items():
            place, at = self._places[name], 0
            flat, given = flats[place.group], values.reshape(-1)
            begin = self._ranks.rank * flat.numel()
            for start, stop in place.runs:
                low, high = max(start, begin), min(stop, begin + flat.numel())
                if low < high:
                    flat[low - begin : high - begin].copy_(given[at + low - start : at + high - start])
                at += stop - start


def set_module_value(parameter: nn.Parameter, whole: torch.Tensor) -> None:
    """What the module computes with, rounded to its type; before the first forward or after an update."""
    if is_partitioned(parameter):
        start, stop = element_range(parameter)
        fill(parameter, whole.reshape(-1)[start:stop])
    else:
        parameter.data.copy_(whole)


def _cut(partitions: torch.Tensor, place: Place) -> torch.Tensor:
    runs = [partitions[start:stop] for start, stop in place.runs]
    return (runs[0] if len(runs) == 1 else torch.cat(runs)).view(place.shape)


def _places_in_one(trainables: Mapping[str, Any], own: Sequence[torch.Tensor], ranks: Ranks) -> dict[str, Place]:
    """Under ZeRO-1 and 2 all tensors of a group are laid one after another, and that is cut into one partition per
    rank. DeepSpeed notes at a parameter which part of it is this rank's, so the ranks tell each other where each begins
    (one collective)."""
    found: list[float] = []
    for parameter in trainables.values():
        mapping = parameter._hp_mapping
        if mapping is None:
            found += [-1, -1]
        else:
            group, before = mapping.param_group_index, mapping.lp_fragment_address.start
            start = ranks.rank * own[group].numel() + mapping.hp_fragment_address.start - before
            found += [group, start]
    known = [int(max(of_ranks)) for of_ranks in zip(*ranks.table(*found), strict=True)]
    groups, starts = known[::2], known[1::2]
    return {
        name: Place(group, ((start, start + p.numel()),), tuple(p.shape))
        for (name, p), group, start in zip(trainables.items(), groups, starts, strict=True)
    }


def _place_in_pieces(parameter: Any, own: Sequence[torch.Tensor], ranks: int) -> Place:
    """Under ZeRO-3 every rank has ceil(numel / ranks) elements of each tensor, the last ones padded; they begin at the
    same place in every partition."""
    group, place = _position(safe_get_local_fp32_param(parameter), own)  # a view
    size = own[group].numel()
    of_one, whole = parameter.ds_tensor.ds_numel, parameter.ds_numel
    starts = [rank * size + place for rank in range(-(-whole // of_one))]
    ends = [start + min(of_one, whole - rank * of_one) for rank, start in enumerate(starts)]
    return Place(group, tuple(zip(starts, ends, strict=True)), whole_shape(parameter))


def _position(piece: torch.Tensor, flats: Sequence[torch.Tensor]) -> tuple[int, int]:
    """(number of the flat tensor that `piece` is a view of, the element at which it begins there)"""
    for number, flat in enumerate(flats):
        offset = (piece.data_ptr() - flat.data_ptr()) // flat.element_size()
        if 0 <= offset < flat.numel():
            return number, offset
    raise RuntimeError("a trained tensor lies outside the optimizer's partitions")
