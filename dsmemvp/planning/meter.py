"""What a traced step holds, computes and moves, and how many calls the host makes for it.

On the meta device the kernels of backbones/kernels stand as one call each (kernels/shapes.py); what the same step is in
torch's own operations is counted beside it.
"""

import weakref
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper

from dsmemvp.backbones import elementwise

ALLOCATES = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "promote_types"}
RENAMES = {"_unsafe_view", "_reshape_alias", "alias", "detach", "lift_fresh"}
LOOKS_UP = {"embedding", "index", "index_select"}
"""Read as much of a table as they give."""


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(
    gradient: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


CPU_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""FLOPs by the arguments' shapes; torch has no formulas for these, as it has for other attention: the whole square of
the sequence, whether causal or not."""
FORMULAS = {**flop_registry, **{packet: shape_wrapper(count) for packet, count in CPU_ATTENTION.items()}}


@dataclass(frozen=True)
class Operation:
    """A call of the host."""

    name: str
    flops: int
    """Of matrix products and attention."""
    moved: int
    """Bytes of all that it reads and writes, each once: nothing is taken to stay in a cache."""
    starts: bool
    """Whether it starts a kernel: it is no view and no allocation."""


class Meter(TorchDispatchMode):
    """Counts bytes of storages made inside it, from when they are made until nothing refers to them, and operations."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.operations: Counter[Operation] = Counter()
        self.written_out: Counter[Operation] = Counter()
        """The same without kernels of this package."""
        self._seen: set[int] = set()

    @property
    def flops(self) -> int:
        return sum(operation.flops * times for operation, times in self.operations.items())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operation = _operation(func, args, kwargs, out)
        self.operations[operation] += 1
        if func.namespace == "dsmemvp":
            with _Operations(self.written_out):
                getattr(elementwise, func._opname)(*args, **kwargs)
        else:
            self.written_out[operation] += 1
        given = {id(t.untyped_storage()) for t in _tensors((args, kwargs))}
        for tensor in _tensors(out):
            self._add(tensor.untyped_storage(), given)
        return out

    def _add(self, storage: Any, given: set[int]) -> None:
        key = id(storage)
        if key in self._seen or key in given:
            return
        self._seen.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, storage.nbytes()).atexit = False

    def _remove(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


class _Operations(TorchDispatchMode):
    """Counts operations alone."""

    def __init__(self, into: Counter[Operation]) -> None:
        super().__init__()
        self._into = into

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._into[_operation(func, args, kwargs or {}, out)] += 1
        return out


def _operation(func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> Operation:
    name = func._opname
    if func.is_view or name in ALLOCATES or name in RENAMES:
        return Operation(name, 0, 0, starts=False)
    count = FORMULAS.get(func._overloadpacket)
    flops = 0 if count is None else count(*args, **kwargs, out_val=out)
    written = sum(map(_touched, _tensors(out)))
    into = {name: value for name, value in kwargs.items() if name != "out"}
    read = written if name in LOOKS_UP else sum(map(_touched, _tensors((args, into))))
    return Operation(name, flops, read + written, starts=True)


def _touched(tensor: torch.Tensor) -> int:
    """Bytes; an expanded dimension is one in memory."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(size for size, stride in sizes if stride or not size) * tensor.element_size()


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
