"""Bytes that ranks send in one optimizer step: first the collectives that DeepSpeed calls, then what a ring makes of
them.

ZeRO-3 gathers weights in every micro-step, reduce-scatters the gradients of the trained tensors in float32 in every
micro-step, and after the update gathers all persistent parameters, frozen ones too, over all GPUs. With hpZ a frozen
parameter that is not persistent is gathered inside its node. Stage 1 (bf16 with float32 gradients) all-reduces them
once a step and gathers what was updated. The few numbers that ranks tell each other beside that are not counted.

In a ring of n ranks, node after node, every rank sends (n-1)/n of the buffer to the next one (twice that for an
all-reduce), and one rank of each node sends to the next node.
"""

from collections import Counter
from dataclasses import dataclass

from dsmemvp.planning.cluster import Cluster
from dsmemvp.planning.gathers import Gathers
from dsmemvp.planning.memory import FLOAT32, optimizer_groups, partition
from dsmemvp.planning.sharding import Sharding
from dsmemvp.planning.trace import Trace


@dataclass(frozen=True)
class Collective:
    """One kind of collective, all of a step's together."""

    what: str
    """weights, gradients, persistent or updated"""
    kind: str
    """all_gather, reduce_scatter or all_reduce"""
    ranks: int
    """Ranks in its group: all, or those of a node."""
    size: int
    """Bytes of the whole buffer, padding included."""
    hidden: bool = False
    """Whether it can run beside the computation."""


@dataclass(frozen=True)
class Traffic:
    """Of one optimizer step, in steady state."""

    collectives: tuple[Collective, ...]
    cluster: Cluster
    from_host: int = 0
    """Bytes copied from host memory to each GPU."""

    def size(self, what: str) -> int:
        return sum(c.size for c in self.collectives if c.what == what)

    def sent_per_gpu(self, hidden: bool | None = None) -> int:
        """Bytes that a GPU sends, to whichever GPU is next; only the (not) `hidden` collectives, or all."""
        return round(sum(self._ring(c) for c in self._chosen(hidden)))

    def across_nodes_per_node(self, hidden: bool | None = None) -> int:
        """Bytes that leave a node, and as many enter it."""
        return round(sum(self._ring(c) for c in self._chosen(hidden) if c.ranks > self.cluster.on_node))

    def _chosen(self, hidden: bool | None) -> list[Collective]:
        return [c for c in self.collectives if hidden is None or c.hidden is hidden]

    def _ring(self, collective: Collective) -> float:
        twice = collective.kind == "all_reduce" or (
            collective.kind == "reduce_scatter" and self.cluster.backend == "gloo"
        )
        return (2 if twice else 1) * (collective.ranks - 1) * collective.size / collective.ranks


def traffic(trace: Trace, sharding: Sharding, cluster: Cluster, gathers: Gathers) -> Traffic:
    n = cluster.gpus
    if n == 1 and not sharding.offload:
        return Traffic((), cluster)
    if sharding.stage == 1:
        flat = optimizer_groups(trace.parameters, n)
        return Traffic(
            (
                Collective("gradients", "all_reduce", n, flat * FLOAT32),
                Collective("updated", "all_gather", n, flat * trace.item),
            ),
            cluster,
        )
    whole = [partition(p, n) * n * p.item for p in trace.parameters]
    over_all, in_node = _weights(trace, sharding, gathers, whole)
    trained = sum(partition(p, n) * n for p in trace.parameters if p.trained)
    persistent = sum(w for w, p in zip(whole, trace.parameters, strict=True) if p.numel <= sharding.persistence)
    collectives = (
        Collective("weights", "all_gather", n, over_all, hidden=True),
        Collective("weights", "all_gather", cluster.on_node, in_node, hidden=True),
        Collective("gradients", "reduce_scatter", n, len(gathers.micro_steps) * trained * FLOAT32),
        Collective("persistent", "all_gather", n, persistent),
    )
    from_host = (over_all + in_node + persistent) // n if sharding.offload else 0
    return Traffic(collectives, cluster, from_host)


def _weights(trace: Trace, sharding: Sharding, gathers: Gathers, whole: list[int]) -> tuple[int, int]:
    """Bytes gathered in a step's micro-steps: (over all GPUs, inside nodes). `whole` is each parameter's."""
    times = Counter(gathers.micro_steps)
    fetched = sum(n * whole[p] for micro_step, n in times.items() for p in micro_step)
    if not sharding.hpz:
        return fetched, 0
    # the node's copy of a trained parameter is dropped with every update, and made again at its first release
    first = sum(whole[p] for p in {p for micro_step in times for p in micro_step} if trace.parameters[p].trained)
    return first, fetched - first
