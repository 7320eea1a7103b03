"""How DeepSpeed shards a run: the recipe's file of ds_configs/, filled in with what recipe and launch decide.

To allow another setting of DeepSpeed's, write it into such a file; what the recipe decides stays "auto" there.
"""

import json
import os
from pathlib import Path
from typing import Any

from dsmemvp.recipe import Recipe

STAGES = (1, 2, 3)
HPZ = "zero_hpz_partition_size"


def deepspeed_settings(recipe: Recipe, world: int, training: bool = True) -> dict[str, Any]:
    """The DeepSpeed configuration with every "auto" that the recipe decides filled in; without `training` the batch is
    whatever the ranks make it. Raises FileNotFoundError or ValueError naming the key."""
    path = Path(recipe.training.deepspeed)
    settings = _read(path)
    _check_stage(settings["zero_optimization"], path, world)
    micro_batch = recipe.training.micro_batch
    micro_steps = recipe.training.micro_steps(world) if training else 1
    decided = {
        "train_batch_size": micro_batch * world * micro_steps,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": recipe.training.gradient_clipping,
        "bf16": {"enabled": recipe.model.dtype == "bf16"},
    }
    for key, value in decided.items():
        found = settings.get(key, "auto")
        automatic = found == "auto" or (isinstance(found, dict) and found.get("enabled") == "auto")
        if not automatic and found != value:
            raise ValueError(
                f"training.deepspeed: {path} sets {key} to {found}, the recipe decides {value}; write auto"
            )
        settings[key] = value
    return settings


def partitioned(settings: dict[str, Any]) -> bool:
    """Whether the frozen weights are cut into one piece per rank (ZeRO-3), or whole on every rank (stages 1 and 2)."""
    return settings["zero_optimization"]["stage"] == 3


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"training.deepspeed: {path} does not exist")
    try:
        settings = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"training.deepspeed: {path} is not JSON: {error}") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("zero_optimization"), dict):
        raise ValueError(f"training.deepspeed: {path} has no zero_optimization")
    return settings


def _check_stage(zero: dict[str, Any], path: Path, world: int) -> None:
    """Fills hpZ's "auto", too: the ranks on a node, so that frozen weights are gathered inside it."""
    if zero.get("stage") not in STAGES:
        raise ValueError(f"training.deepspeed: {path}: zero_optimization.stage must be 1, 2 or 3")
    if HPZ not in zero:
        return
    on_node = int(os.environ.get("LOCAL_WORLD_SIZE") or world)
    if zero[HPZ] == "auto":
        zero[HPZ] = on_node
    if world % int(zero[HPZ]):
        raise ValueError(
            f"training.deepspeed: {path}: {HPZ} {zero[HPZ]} does not divide {world} ranks; every node must run as many"
            " ranks as the others, or take zero3.json"
        )
