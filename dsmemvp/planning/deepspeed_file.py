"""A file of ds_configs/: which settings of DeepSpeed's it may hold, and why not the others.

To allow another one, add it to SETTINGS or ZERO. What DeepSpeed makes of them: runtime/config.py and
runtime/zero/config.py there.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsmemvp.config.yaml_text import shown
from dsmemvp.errors import UserError
from dsmemvp.json_text import read_json

MOST = 1 << 20
"""Bytes of such a file."""
MOST_NUMBER = 10**15
HPZ = "zero_hpz_partition_size"
PREFETCH = "stage3_prefetch_bucket_size"


@dataclass(frozen=True)
class Kind:
    """What a setting may be."""

    words: str
    holds: Callable[[Any], bool]
    auto: bool = False
    """Whether "auto" may stand in its place: filled in from recipe and launch, or DeepSpeed's default."""


def _whole(least: int, auto: bool = True) -> Kind:
    return Kind(f"a whole number, at least {least}", lambda v: _number(v) and least <= v == int(v), auto)


def _one_of(*words: Any, auto: bool = True) -> Kind:
    listed = ", ".join(map(str, words[:-1]))
    return Kind(f"{listed} or {words[-1]}" if listed else str(words[-1]), lambda v: _same_type(v, words), auto)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST_NUMBER  # NaN is not


def _same_type(value: Any, words: tuple[Any, ...]) -> bool:
    return any(type(value) is type(word) and value == word for word in words)


FLAG, LAUNCH = Kind("true or false", lambda v: isinstance(v, bool)), _whole(1)
AUTO_FLAG = Kind(FLAG.words, FLAG.holds, auto=True)
ZERO: dict[str, Any] = {
    "stage": _one_of(1, 2, 3, auto=False),
    HPZ: _whole(1),
    "offload_param": {"device": _one_of("none", "cpu"), "pin_memory": AUTO_FLAG},
    **dict.fromkeys(("overlap_comm", "contiguous_gradients", "reduce_scatter", "allgather_partitions"), AUTO_FLAG),
    "use_multi_rank_bucket_allreduce": AUTO_FLAG,
    **dict.fromkeys(("log_trace_cache_warnings", "enable_sanity_checks"), AUTO_FLAG),
    **{key: _whole(1) for key in ("reduce_bucket_size", "allgather_bucket_size", "sub_group_size")},
    **{key: _whole(0) for key in (PREFETCH, "stage3_param_persistence_threshold")},
    **{key: _whole(0) for key in ("stage3_max_live_parameters", "stage3_max_reuse_distance")},
    "stage3_model_persistence_threshold": _whole(0),
}
SETTINGS: dict[str, Any] = {
    "train_batch_size": LAUNCH,
    "train_micro_batch_size_per_gpu": LAUNCH,
    "gradient_accumulation_steps": LAUNCH,
    "gradient_clipping": Kind("a number, at least 0", lambda v: _number(v) and v >= 0, auto=True),
    "bf16": {"enabled": AUTO_FLAG},
    "communication_data_type": _one_of("fp32", "bf16", auto=False),
    "data_types": {"grad_accum_dtype": _one_of("fp32", auto=False)},
    "zero_optimization": ZERO,
    "steps_per_print": _whole(1, auto=False),
    **dict.fromkeys(("wall_clock_breakdown", "memory_breakdown", "dump_state"), FLAG),
    "comms_logger": dict.fromkeys(("enabled", "verbose", "prof_all", "debug"), FLAG),
}
DECIDED_ELSEWHERE = {
    "the recipe's training.learning_rate, betas and weight_decay make the optimizer": ("optimizer",),
    "the learning rate follows training.warmup_epochs and training.min_learning_rate": ("scheduler",),
    "the recipe's model.dtype is bf16 or fp32": ("fp16", "amp", "torch_autocast"),
    "a run writes TensorBoard's events and metrics.jsonl by itself": ("tensorboard", "wandb", "comet", "csv_monitor"),
    "the log of a run counts FLOPs by itself": ("flops_profiler",),
    "the recipe's training.global_batch stays the same on any number of ranks": ("elasticity",),
    "no gradient here is sparse": ("sparse_gradients",),
    "the recipe's training.recompute decides": ("activation_checkpointing",),
    "the recipe decides the order of samples": ("curriculum_learning", "data_efficiency"),
    "weights and gradients are computed with and sent as they are": (
        *("compression_training", "quantize_training", "weight_quantization"),
        *("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients"),
    ),
    "`dsmemvp plan` compares the ways of sharding": ("autotuning",),
    "ZeRO alone cuts the model": ("pipeline", "tensor_parallel", "sequence_parallel_size", "hybrid_engine", "compile"),
    "a run has checkpoints of its own (training.checkpoint_steps)": (
        *("checkpoint", "nebula", "load_universal", "stage3_gather_16bit_weights_on_model_save"),
    ),
    "weights are offloaded to memory, not to disks": ("aio", "nvme_path"),
    "what is trained is small, and its optimizer stays with the rank": ("offload_optimizer", "zenflow"),
}
WHY = {key: why for why, keys in DECIDED_ELSEWHERE.items() for key in keys}


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a file, whole numbers as int; "auto" is left as it is. Raises OSError or
    UserError naming the file and the key."""
    if not path.exists():
        raise UserError(f"training.deepspeed: {path} does not exist")
    try:
        settings = read_json(path, MOST, _no_duplicates)
    except ValueError as error:
        raise UserError(f"training.deepspeed: {error}") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("zero_optimization"), dict):
        raise UserError(f"training.deepspeed: {path} has no zero_optimization")
    where = f"training.deepspeed: {path}"
    checked = _group(settings, SETTINGS, where, "")
    zero = checked["zero_optimization"]
    if "stage" not in zero:
        raise UserError(f"{where}: zero_optimization.stage must be {ZERO['stage'].words}")
    cut = [key for key in (HPZ, "offload_param") if zero["stage"] != 3 and key in zero]
    if cut:
        raise UserError(f"{where}: zero_optimization.{cut[0]} goes with stage 3, where the frozen weights are cut")
    return checked


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """DeepSpeed itself refuses them, too: the last one would count."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"{shown(key)} is given twice")
    return dict(pairs)


def _off(value: Any) -> bool:
    """Whether a group of keys asks for nothing."""
    return isinstance(value, dict) and (value.get("enabled") is False or value.get("device") == "none")


def _group(given: Mapping[str, Any], known: Mapping[str, Any], where: str, prefix: str) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for key, value in given.items():
        name = f"{prefix}{key}"
        if key in WHY and _off(value):
            continue
        if key in WHY:
            raise UserError(f"{where}: {name}: {WHY[key]}; leave it out")
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else "it is none of those in ds_configs/README.md"
            raise UserError(f"{where}: unknown key {shown(name)}; {hint}")
        if isinstance(known[key], dict):
            if not isinstance(value, dict):
                raise UserError(f"{where}: {name} must be a group of keys, not {shown(value)}")
            checked[key] = _group(value, known[key], where, f"{name}.")
        elif (value == "auto" and known[key].auto) or known[key].holds(value):
            checked[key] = int(value) if isinstance(value, float) and value.is_integer() else value
        else:
            also = ' or "auto"' if known[key].auto else ""
            raise UserError(f"{where}: {name} must be {known[key].words}{also}, not {shown(value)}")
    return checked
