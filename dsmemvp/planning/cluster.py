"""The machines a run is planned for, and how their sizes are written."""

import re
from dataclasses import dataclass

from dsmemvp.errors import UserError

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


MOST_QUANTITY = 1e21
MOST_GPUS = 10**6
MOST_CLUSTERS = 32


@dataclass(frozen=True)
class Cluster:
    gpus: int
    gpus_per_node: int
    gpu_memory: float = 80 * 2**30
    """Bytes of one GPU."""
    interconnect: float = 400e9 / 8
    """Bytes per second from one node to the others, all its ports together, in one direction."""
    intra: float = 450e9
    """Bytes per second of one GPU to the others of its node, in one direction."""
    gpu_flops: float = 989e12
    """FLOP/s of one GPU's 16-bit matrix products, by its data sheet."""
    backend: str = "nccl"
    """nccl, or gloo, whose reduce-scatter is an all-reduce."""

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.gpus_per_node < 1:
            raise UserError(f"--gpus {self.gpus} --gpus-per-node {self.gpus_per_node}: both must be at least 1")
        if self.gpus > MOST_GPUS:
            raise UserError(f"--gpus: {self.gpus} GPUs are more than {MOST_GPUS:,}")
        if self.gpus > self.gpus_per_node and self.gpus % self.gpus_per_node:
            raise UserError(
                f"--gpus: {self.gpus} GPUs do not fill nodes of {self.gpus_per_node}; give a multiple of it, or set"
                " --gpus-per-node"
            )

    @property
    def on_node(self) -> int:
        return min(self.gpus, self.gpus_per_node)

    @property
    def nodes(self) -> int:
        return self.gpus // self.on_node


def quantity(text: str, option: str) -> float:
    """ "80GiB" -> bytes, "400Gb" or "400Gb/s" -> bytes per second, "989T" -> the number. Raises UserError naming the
    option, also for a number without any unit, which is never meant."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgtpKMGTP]i?|)(B|b|bit|FLOP)?(?:/?p?s|S)?\s*", text)
    if not found or not (found[2] or found[3]):
        raise UserError(
            f"{option}: {text[:40]!r} is no size: write 80GiB, 400Gb (bits) or 50GB (bytes) per second, 989T"
        )
    number, prefix, unit = found.groups()
    amount = float(number) * _UNITS[prefix.lower()] / (8 if unit in ("b", "bit") else 1)
    if not 0 < amount < MOST_QUANTITY:
        raise UserError(f"{option}: {text[:40]!r} must be above 0 and below {MOST_QUANTITY:.0e}")
    return amount


def clusters(gpus: str, gpus_per_node: int, memory: str, interconnect: str, intra: str, flops: str) -> list[Cluster]:
    """One for each number in `gpus`, "8" or "8,16,64". Raises UserError."""
    if not re.fullmatch(r"\d{1,7}(,\d{1,7})*", gpus) or gpus.count(",") >= MOST_CLUSTERS:
        raise UserError(f"--gpus: a number, or up to {MOST_CLUSTERS} as in 8,16,64, not {gpus[:40]!r}")
    sizes = {"--gpu-memory": memory, "--interconnect": interconnect, "--intra": intra, "--gpu-flops": flops}
    m, across, inside, f = (quantity(text, option) for option, text in sizes.items())
    return [Cluster(int(n), gpus_per_node, m, across, inside, f) for n in gpus.split(",")]
