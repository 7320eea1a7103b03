"""How DeepSpeed shards a run: the recipe's file of ds_configs/, filled in with what recipe and launch decide.

planning/deepspeed_file.py says what may stand in such a file; what the recipe decides stays "auto" there.
"""

import os
from pathlib import Path
from typing import Any

from dsmemvp.config.recipe import Recipe
from dsmemvp.counting import counted
from dsmemvp.errors import UserError
from dsmemvp.planning.deepspeed_file import HPZ, read_settings


def deepspeed_settings(recipe: Recipe, world: int, training: bool = True) -> dict[str, Any]:
    """The DeepSpeed configuration with every "auto" that the recipe decides filled in; without `training` the batch is
    whatever the ranks make it. Micro-steps are accumulated by the training loop, so that their number may differ from
    step to step; DeepSpeed gets one. Raises UserError naming the key."""
    path = Path(recipe.training.deepspeed)
    settings = read_settings(path)
    _cut_inside_nodes(settings["zero_optimization"], path, world)
    micro_batch = recipe.training.micro_batch
    micro_steps = recipe.training.micro_steps(world) if training else 1
    decided = {
        "train_batch_size": recipe.training.global_batch if training else micro_batch * world,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": recipe.training.gradient_clipping,
        "bf16": {"enabled": recipe.model.dtype == "bf16"},
    }
    for key, value in decided.items():
        found = settings.get(key, "auto")
        automatic = found == "auto" or (isinstance(found, dict) and found.get("enabled") == "auto")
        if not automatic and found != value:
            raise UserError(f"training.deepspeed: {path} sets {key} to {found}, the recipe decides {value}; write auto")
        settings[key] = value
    # its linear layers keep every input, those of frozen weights included (backbones/linear.py does not)
    settings["zero_optimization"]["memory_efficient_linear"] = False
    # its timers wait for the GPU twice in every micro-step
    settings["timers"] = {"throughput": {"enabled": False}}
    return settings | {"train_batch_size": micro_batch * world, "gradient_accumulation_steps": 1}


def partitioned(settings: dict[str, Any]) -> bool:
    """Whether the frozen weights are cut into one piece per rank (ZeRO-3), or whole on every rank (stages 1 and 2)."""
    return settings["zero_optimization"]["stage"] == 3


def _cut_inside_nodes(zero: dict[str, Any], path: Path, world: int) -> None:
    """Fills in hpZ's "auto": the ranks on a node, so that frozen weights are gathered inside it."""
    if HPZ not in zero:
        return
    if zero[HPZ] == "auto":
        zero[HPZ] = int(os.environ.get("LOCAL_WORLD_SIZE") or world)
    if world % zero[HPZ]:
        raise UserError(
            f"training.deepspeed: {path}: {HPZ} {zero[HPZ]} does not divide {counted(world, 'rank')}; every node must"
            " run as many ranks as the others, or take zero3.json"
        )
