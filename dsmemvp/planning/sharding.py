"""What a DeepSpeed configuration says about sharding, with DeepSpeed's defaults for what it does not say."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsmemvp.errors import UserError
from dsmemvp.planning.deepspeed_file import HPZ, PREFETCH, read_settings

_PREFETCH = 50_000_000
"""DeepSpeed's default."""


@dataclass(frozen=True)
class Sharding:
    name: str
    stage: int
    persistence: int = 100_000
    """ZeRO-3: parameters of up to so many elements stay whole on every GPU."""
    prefetch: int | None = _PREFETCH
    """None: by the blocks of the model (`prefetched`)."""
    max_live: int = 1_000_000_000
    max_reuse: int = 1_000_000_000
    reduce_bucket: int = 500_000_000
    hpz: bool = False
    """A second partition of the frozen weights inside each node."""
    offload: bool = False
    """The frozen partitions lie in host memory."""
    pinned: bool = False
    """That memory is pinned."""


_KEYS = {
    "persistence": "stage3_param_persistence_threshold",
    "prefetch": PREFETCH,
    "max_live": "stage3_max_live_parameters",
    "max_reuse": "stage3_max_reuse_distance",
    "reduce_bucket": "reduce_bucket_size",
}


def prefetched(block: int) -> int:
    """Elements that are fetched ahead, where DeepSpeed's file says "auto" and each of the decoder's blocks, of `block`
    elements, is gathered as one: so many that the next block is on its way while one computes. 0: no block is gathered
    as one."""
    return round(1.4 * block) or _PREFETCH


def read_sharding(path: Path) -> Sharding:
    """Raises OSError or UserError naming the file."""
    settings = read_settings(path)
    zero, sent = settings["zero_optimization"], settings.get("communication_data_type", "fp32")
    if zero["stage"] == 2:
        raise UserError(f"training.deepspeed: {path}: ZeRO stage 2 cannot be planned, only 1 and 3")
    if sent != "fp32":
        raise UserError(f"training.deepspeed: {path}: communication_data_type {sent} cannot be planned, only fp32")
    numbers: dict[str, Any] = {field: zero[key] for field, key in _KEYS.items() if zero.get(key, "auto") != "auto"}
    if zero.get(PREFETCH) == "auto":
        numbers["prefetch"] = None
    host = zero.get("offload_param", {})
    offload, pinned = host.get("device", "auto") == "cpu", host.get("pin_memory", "auto") is True
    return Sharding(path.stem, zero["stage"], **numbers, hpz=zero.get(HPZ, 1) != 1, offload=offload, pinned=pinned)
