"""How long a step may take: an estimate, from assumptions that are printed beside it."""

from dataclasses import dataclass

from dsmemvp.planning.cluster import Cluster
from dsmemvp.planning.traffic import Traffic

EFFICIENCY = 0.4
"""Share of the data sheet's FLOP/s that a step's products reach."""
LINK_SHARE = 0.8
"""Share of a link's given speed that collectives reach."""
HOST = 25e9
"""Bytes per second from pinned host memory to one GPU (PCIe 4 x16)."""


@dataclass(frozen=True)
class Duration:
    """Seconds of one optimizer step."""

    compute: float
    gathers: float
    """Of weights, beside the computation."""
    exposed: float
    """Gradients and updated parameters, after it."""

    @property
    def step(self) -> float:
        return max(self.compute, self.gathers) + self.exposed


def duration(flops: int, traffic: Traffic, cluster: Cluster) -> Duration:
    """`flops` of one GPU in one step."""
    return Duration(
        compute=flops / (cluster.gpu_flops * EFFICIENCY),
        gathers=max(_links(traffic, cluster, hidden=True), traffic.from_host / HOST),
        exposed=_links(traffic, cluster, hidden=False),
    )


def _links(traffic: Traffic, cluster: Cluster, hidden: bool) -> float:
    """A ring goes at the pace of its slowest link."""
    inside = traffic.sent_per_gpu(hidden) / cluster.intra
    across = traffic.across_nodes_per_node(hidden) / cluster.interconnect
    return max(inside, across) / LINK_SHARE
