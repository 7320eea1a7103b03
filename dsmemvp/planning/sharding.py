"""What a DeepSpeed configuration says about sharding, with DeepSpeed's defaults for what it does not say."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


_KEYS = {
    "persistence": "stage3_param_persistence_threshold",
    "prefetch": "stage3_prefetch_bucket_size",
    "max_live": "stage3_max_live_parameters",
    "max_reuse": "stage3_max_reuse_distance",
    "reduce_bucket": "reduce_bucket_size",
}


def read_sharding(path: Path) -> Sharding:
    """Raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"training.deepspeed: {path} does not exist")
    try:
        zero: dict[str, Any] = json.loads(path.read_bytes()).get("zero_optimization", {})
        numbers = {field: int(zero[key]) for field, key in _KEYS.items() if zero.get(key, "auto") != "auto"}
        stage = int(zero.get("stage", 0))
        hpz = zero.get("zero_hpz_partition_size", 1)
        offload = (zero.get("offload_param") or {}).get("device", "none") != "none"
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"training.deepspeed: {path} is not a DeepSpeed configuration: {error}") from None
    if stage not in (1, 3):
        raise ValueError(f"training.deepspeed: {path}: ZeRO stage {stage} cannot be planned, only 1 and 3")
    return Sharding(path.stem, stage, **numbers, hpz=hpz == "auto" or hpz > 1, offload=offload)
