"""Gradient checkpointing: which values of a block are kept for the backward, and which are computed again in it.

A block gives its values names. `BlockValues` stands between autograd and the tensors that it keeps: in place of one
that is not to be kept it stores a note, and in the backward it computes the value anew from those that are kept. So
only that is computed again which a gradient needs (no product whose result is merely added), and a trained layer inside
the block (LoRA) needs no code of its own. What has no name is kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

Policy = Literal["none", "elementwise", "qkv", "attention", "mlp", "qkv+mlp", "full"]

_QKV = frozenset({"query", "key", "value", "raw_query", "raw_key"})
_ATTENTION = frozenset({"mixed", "log_sums", "middle"})
_MLP = frozenset({"gate", "up"})
KEPT: dict[Policy, frozenset[str]] = {
    "elementwise": _QKV | _ATTENTION | _MLP,
    "qkv": _ATTENTION | _MLP,
    "attention": _MLP,
    "mlp": _QKV | _ATTENTION,
    "qkv+mlp": _ATTENTION,
    "full": frozenset(),
}
"""Policy -> the values of a decoder block (decoder.py) that are kept beside its input. Under `none` autograd keeps
whatever transformers' operations need."""


@dataclass(frozen=True)
class Rule:
    """How values follow from others."""

    names: tuple[str, ...]
    needs: tuple[str, ...]
    compute: Callable[..., Sequence[torch.Tensor]]
    """The needed values -> the named ones"""

    def __call__(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(zip(self.names, self.compute(*(values[name] for name in self.needs)), strict=True))


@dataclass
class _Saved:
    """In place of a tensor that autograd saves: the tensor, or the name of the value whose storage it is a view of."""

    tensor: torch.Tensor | None
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    name: str = ""


class BlockValues:
    """Of one block in one forward; made anew for each. Use it as a context around the block's operations:

    with BlockValues(kept, rules, hidden=hidden) as values:
        values.put(made := rule(found))
    """

    def __init__(self, kept: frozenset[str], rules: Sequence[Rule], **inputs: torch.Tensor):
        """`inputs` are kept whatever the policy."""
        self._kept = kept
        self._rules = {name: rule for rule in rules for name in rule.names}
        self._values = {name: value.detach() for name, value in inputs.items()}
        self._names: dict[int, str] = {}
        self._alive: list[torch.Tensor] = []  # until the forward ends, so that no storage is taken twice
        self._open: dict[str, int] = {}
        self._fresh: list[_Saved] = []
        self._hooks: saved_tensors_hooks | None = None

    def __enter__(self) -> "BlockValues":
        self._hooks = saved_tensors_hooks(self._pack, self._unpack)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        assert self._hooks is not None
        self._hooks.__exit__(*error)
        self._hooks = None  # they refer to this object: a cycle would keep its tensors until a garbage collection
        self._names.clear()
        self._alive.clear()
        self._fresh.clear()
        needed = {need for name in self._open for need in self._needed(name)}
        self._values = {name: value for name, value in self._values.items() if name in needed}

    def put(self, values: Mapping[str, torch.Tensor]) -> None:
        """What a rule has given in the forward."""
        for name, value in values.items():
            if name in self._kept:
                self._values[name] = value.detach()
            else:
                self._names[_storage(value)] = name
                self._alive.append(value)
        # what the rule has saved of its own results
        for saved in self._fresh:
            self._name(saved)
        self._fresh.clear()

    def _needed(self, name: str) -> set[str]:
        """The values at hand that one is computed from."""
        if name in self._values:
            return {name}
        return set().union(*(self._needed(need) for need in self._rules[name].needs))

    def _pack(self, tensor: torch.Tensor) -> _Saved:
        saved = _Saved(tensor, tensor.shape, tensor.stride(), int(tensor.storage_offset()))
        self._name(saved)
        if saved.tensor is not None:
            self._fresh.append(saved)
        return saved

    def _name(self, saved: _Saved) -> None:
        assert saved.tensor is not None
        name = self._names.get(_storage(saved.tensor))
        if name is not None:
            saved.name, saved.tensor = name, None
            self._open[name] = self._open.get(name, 0) + 1

    def _unpack(self, saved: _Saved) -> torch.Tensor:
        if saved.tensor is not None:
            return saved.tensor
        with torch.no_grad():
            value = self._get(saved.name)
        self._open[saved.name] -= 1
        # a value that no further step of the backward reads is let go
        computed = [name for name in self._values if name in self._rules and name not in self._kept]
        for name in computed:
            if not self._open.get(name):
                del self._values[name]
        return value.as_strided(saved.size, saved.stride, saved.offset)

    def _get(self, name: str) -> torch.Tensor:
        if name not in self._values:
            rule = self._rules[name]
            self._values |= rule({need: self._get(need) for need in rule.needs})
        return self._values[name]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def run_again(function: Callable[..., Any], *inputs: Any) -> Any:
    """`function(*inputs)`, of which nothing but the inputs is kept; what a gradient needs is computed again."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, determinism_check="none")
