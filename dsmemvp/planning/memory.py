"""Bytes that one GPU holds under a sharding choice. Weights, trained part and buffers are what DeepSpeed 0.19 allocates
(runtime/zero/partition_parameters.py and stage3.py, runtime/bf16_optimizer.py), element by element.

n GPUs, M of them on a node; an element of a parameter has `item` bytes, float32 has 4.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from dsmemvp.planning.cluster import Cluster
from dsmemvp.planning.gathers import Gathers
from dsmemvp.planning.sharding import Sharding
from dsmemvp.planning.trace import Parameter, Trace

FLOAT32 = 4
RESERVE = 4 * 2**30
"""Bytes of a GPU that CUDA, NCCL and gaps between allocations take."""


@dataclass(frozen=True)
class Memory:
    weights: int
    """Held all the time, in the compute type: own partitions, those of the node (hpZ), persistent parameters, and what
    a stage has beside the model."""
    trained: int
    """Float32 master_weights, two Adam moments and the gradients of the trained tensors."""
    buffers: int
    """Gradient bucket, and the weights that are whole while they are used."""
    activations: int
    """Most that a micro-step's forward and backward hold beyond all that."""
    host_per_node: int
    """Host memory of a node."""
    host_gaps: int = 0
    """What of it is left over in pinned blocks."""

    @property
    def gpu(self) -> int:
        return self.weights + self.trained + self.buffers + self.activations


def memory(trace: Trace, sharding: Sharding, cluster: Cluster, gathers: Gathers) -> Memory:
    if sharding.stage == 1:
        return _replicated(trace, cluster)
    n, parameters = cluster.gpus, trace.parameters
    share = sum(partition(p, n) * p.item for p in parameters)
    frozen_share = sum(partition(p, n) * p.item for p in parameters if not p.trained)
    # with one GPU the whole parameter is the partition itself, unless that lies in host memory
    apart = n > 1 or sharding.offload
    kept_whole = [p for p in parameters if p.numel <= sharding.persistence] if apart else []
    persistent = sum(partition(p, n) * n * p.item for p in kept_whole)
    secondary = frozen_share * n // cluster.on_node if sharding.hpz else 0
    host = share if sharding.offload else 0
    blocks = _pinned(trace, n) if sharding.offload and sharding.pinned else host
    return Memory(
        weights=share - host + persistent + secondary + trace.beside,
        trained=4 * FLOAT32 * sum(partition(p, n) for p in parameters if p.trained),
        buffers=FLOAT32 * sharding.reduce_bucket + (gathers.live_bytes + gathers.coalesced_bytes if apart else 0),
        activations=trace.peak,
        host_per_node=blocks * cluster.on_node,
        host_gaps=(blocks - host) * cluster.on_node,
    )


def _pinned(trace: Trace, n: int) -> int:
    """Bytes of a GPU's partitions in pinned memory. DeepSpeed pins each by itself; those of each group of trained
    tensors it then moves into a buffer, and what they have left torch keeps for later."""
    sizes = [partition(p, n) * p.item for p in trace.parameters]
    groups = [[partition(p, n) for p in own] for own in _groups(trace.parameters)]
    return sum(map(pinned_block, [*sizes, *(sum(group) * trace.item for group in groups)]))


def pinned_block(size: int) -> int:
    """Bytes that torch takes for so many in pinned memory: the next power of two (ATen/core/CachingHostAllocator.h)."""
    return 1 << (size - 1).bit_length() if size else 0


def _replicated(trace: Trace, cluster: Cluster) -> Memory:
    """ZeRO stage 1, bf16, float32 gradients: whole weights and gradients; master weights and moments in n parts."""
    flat = optimizer_groups(trace.parameters, cluster.gpus)
    frozen = sum(p.numel * p.item for p in trace.parameters if not p.trained)
    return Memory(
        weights=frozen + flat * trace.item + trace.beside,
        trained=FLOAT32 * flat + 3 * FLOAT32 * (flat // cluster.gpus),
        buffers=FLOAT32 * flat,  # the gradients are flattened once more to be sent
        activations=trace.peak,
        host_per_node=0,
    )


def partition(parameter: Parameter, n: int) -> int:
    """Elements of a parameter that each of n GPUs holds, the last one's padded."""
    return -(-parameter.numel // n)


def _groups(parameters: Iterable[Parameter]) -> list[list[Parameter]]:
    """Trained ones by the optimizer's groups."""
    grouped: dict[tuple[bool, bool], list[Parameter]] = {}
    for p in parameters:
        if p.trained:
            grouped.setdefault((p.decayed, p.scaled), []).append(p)
    return list(grouped.values())


def optimizer_groups(parameters: Iterable[Parameter], n: int) -> int:
    """Elements of stage 1's flat buffers: one for each group of trained tensors, padded to a multiple of 2 n."""
    sizes = (sum(p.numel for p in own) for own in _groups(parameters))
    return sum(-(-size // (2 * n)) * 2 * n for size in sizes)
