"""What a DeepSpeed configuration says about sharding, with DeepSpeed's defaults for what it does not say."""

from dataclasses import dataclass
from pathlib import Path

from dsmemvp.errors import UserError
from dsmemvp.planning.deepspeed_file import HPZ, read_settings


@dataclass(frozen=True)
class Sharding:
    name: str
    stage: int
    persistence: int = 100_000
    """ZeRO-3: parameters of up to so many elements stay whole on every GPU."""
    prefetch: int = 50_000_000
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
    "prefetch": "stage3_prefetch_bucket_size",
    "max_live": "stage3_max_live_parameters",
    "max_reuse": "stage3_max_reuse_distance",
    "reduce_bucket": "reduce_bucket_size",
}


def read_sharding(path: Path) -> Sharding:
    """Raises OSError or UserError naming the file."""
    settings = read_settings(path)
    zero, sent = settings["zero_optimization"], settings.get("communication_data_type", "fp32")
    if zero["stage"] == 2:
        raise UserError(f"training.deepspeed: {path}: ZeRO stage 2 cannot be planned, only 1 and 3")
    if sent != "fp32":
        raise UserError(f"training.deepspeed: {path}: communication_data_type {sent} cannot be planned, only fp32")
    numbers = {field: zero[key] for field, key in _KEYS.items() if zero.get(key, "auto") != "auto"}
    host = zero.get("offload_param", {})
    offload, pinned = host.get("device", "auto") == "cpu", host.get("pin_memory", "auto") is True
    return Sharding(path.stem, zero["stage"], **numbers, hpz=zero.get(HPZ, 1) != 1, offload=offload, pinned=pinned)
