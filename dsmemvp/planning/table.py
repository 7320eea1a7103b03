"""Plans as lines of text: one Markdown table, what was changed, the recommendation, the assumptions."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from dsmemvp.counting import counted
from dsmemvp.markdown import table
from dsmemvp.planning.duration import EFFICIENCY, HOST, LINK_SHARE
from dsmemvp.planning.memory import RESERVE
from dsmemvp.planning.plan import SAME, SAME_SECONDS, Choice, Plan
from dsmemvp.planning.trace import SUPERVISED

GIB = 2**30
Units = tuple[tuple[float, str], ...]
HELD: Units = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
SENT: Units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
TIME: Units = ((1, "s"), (1e-3, "ms"), (1e-6, "us"))
Column = tuple[str, Units, Callable[[Plan, Choice], tuple[float, ...]]]
HELD_COLUMNS: tuple[Column, ...] = (
    ("weights", HELD, lambda plan, c: (c.memory.weights,)),
    ("trained", HELD, lambda plan, c: (c.memory.trained,)),
    ("buffers", HELD, lambda plan, c: (c.memory.buffers,)),
    ("activations", HELD, lambda plan, c: (c.memory.activations,)),
)
SUM_COLUMNS: tuple[Column, ...] = (
    ("GPU", HELD, lambda plan, c: (c.memory.gpu,)),
    ("host/node", HELD, lambda plan, c: (c.memory.host_per_node,)),
    ("sent/GPU", SENT, lambda plan, c: (c.traffic.sent_per_gpu(),)),
    ("out/node", SENT, lambda plan, c: (c.traffic.across_nodes_per_node(),)),
    ("step", TIME, lambda plan, c: (c.duration.step,)),
)


def lines(plans: list[Plan], tokens: int) -> list[str]:
    text: list[str] = []
    for stage, group in groupby(plans, lambda plan: plan.stage):
        text += [*([f"Stage {stage}:", ""] if stage else []), *_of_stage(list(group)), ""]
    return [*text, *assumptions(plans[0], tokens)]


def _of_stage(plans: list[Plan]) -> list[str]:
    rows = [(plan, choice) for plan in plans for choice in plan.choices]
    columns = [
        ["GPUs", *(str(plan.cluster.gpus) for plan, _ in rows)],
        ["sharding", *(choice.sharding.name for _, choice in rows)],
        *(_column(column, rows) for column in HELD_COLUMNS),
        ["recompute", *(c.recompute if c.fits(plan.cluster) else "does not fit" for plan, c in rows)],
        *(_column(column, rows) for column in SUM_COLUMNS),
    ]
    text = table(columns)
    for plan in plans:
        text += ["", *plan.notes, recommendation(plan)]
    return text


def _column(column: Column, rows: Sequence[tuple[Plan, Choice]]) -> list[str]:
    """Head with the unit that suits the largest value, then the values in it."""
    name, units, values = column
    found = [values(plan, choice) for plan, choice in rows]
    size, unit = _unit(max(max(each) for each in found), units)
    return [f"{name} {unit}", *(" / ".join(_digits(value / size) for value in each) for each in found)]


def _unit(value: float, units: Units) -> tuple[float, str]:
    return next((each for each in units if value >= each[0]), units[0] if value == 0 else units[-1])


def amount(value: float, units: Units) -> str:
    """ "30.8 GiB": in the unit that suits it."""
    size, unit = _unit(value, units)
    return f"{_digits(value / size)} {unit}"


def _digits(number: float) -> str:
    """Three significant digits, at most three behind the point."""
    if 0 < number < 0.001:
        return "<0.001"
    decimals = 0 if number >= 99.95 or number == 0 else 1 if number >= 9.995 else 2 if number >= 0.9995 else 3
    return f"{number:.{decimals}f}"


def recommendation(plan: Plan) -> str:
    cluster, folder = plan.cluster, Path(plan.recipe.training.deepspeed).parent
    gpus, total, reserve = counted(cluster.gpus, "GPU"), amount(cluster.gpu_memory, HELD), amount(RESERVE, HELD)
    if plan.best is None:
        least = min(plan.choices, key=lambda c: c.memory.gpu)
        return (
            f"{gpus}: nothing fits; {least.sharding.name} comes closest with {amount(least.memory.gpu, HELD)} and a"
            f" reserve of {reserve} of {total}. Take more GPUs, or a smaller training.micro_batch"
        )
    best = plan.best
    left = f", {amount(best.traffic.across_nodes_per_node(), SENT)} out of each node" if cluster.nodes > 1 else ""
    return (
        f"{gpus}: take training.deepspeed={folder / best.sharding.name}.json"
        f" training.recompute={best.recompute}: the simplest of the fastest that fit, with"
        f" {amount(best.memory.gpu, HELD)} and a reserve of {reserve} of {total}{left} and about"
        f" {amount(best.duration.step, TIME)} per step of {counted(plan.recipe.training.global_batch, 'sample')}"
    )


def assumptions(plan: Plan, tokens: int) -> list[str]:
    cluster = plan.cluster
    return [
        "Per GPU: weights, trained tensors with optimizer and gradients, buffers, activations under the recompute"
        " policy beside them, and the sum; pinned host memory per node; bytes sent per step; time per step.",
        "Weights, trained and bytes sent are exact; activations are what the model's operations hold; the times are"
        f" an estimate, and those within {SAME:.0%} or {amount(SAME_SECONDS, TIME)} of the fastest count as equal.",
        f"Assumed: {tokens} text tokens per sample, {SUPERVISED} of them supervised, every sample with an image;"
        f" {RESERVE / GIB:.0f} GiB of a GPU for CUDA, NCCL and gaps beside the sum.",
        "Sent: rings through the nodes; out/node leaves each node, and as much enters. hpZ's groups are the nodes"
        f" ({counted(cluster.on_node, 'GPU')}: zero_hpz_partition_size).",
        f"Step: the longer of computing ({EFFICIENCY:.0%} of {cluster.gpu_flops / 1e12:.0f} TFLOP/s) and gathering"
        f" weights, then gradients and updated parameters; links at {LINK_SHARE:.0%} of {cluster.intra / 1e9:.0f} GB/s"
        f" per GPU inside a node and {cluster.interconnect * 8 / 1e9:.0f} Gb/s per node between them;"
        f" {HOST / 1e9:.0f} GB/s from host memory.",
    ]
