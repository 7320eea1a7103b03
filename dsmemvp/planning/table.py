"""Plans as lines of text: one Markdown table, what was changed, the recommendation, the assumptions."""

from pathlib import Path

from dsmemvp.planning.duration import EFFICIENCY, HOST, LINK_SHARE
from dsmemvp.planning.plan import RESERVE, Choice, Plan
from dsmemvp.planning.trace import SUPERVISED

GIB = 2**30
HEAD = (
    *("GPUs", "sharding", "weights", "trained", "buffers", "activations", "recompute", "GPU", "host/node"),
    *("sent/GPU", "out/node", "step"),
)


def lines(plans: list[Plan], tokens: int) -> list[str]:
    rows = [HEAD, *(_row(plan, choice) for plan in plans for choice in plan.choices)]
    text = _aligned(rows)
    for plan in plans:
        text += ["", *plan.notes, recommendation(plan)]
    return [*text, "", *assumptions(plans[0], tokens)]


def _row(plan: Plan, choice: Choice) -> tuple[str, ...]:
    held, none, full = choice.memory, plan.activations["none"], plan.activations["full"]
    return (
        str(plan.cluster.gpus),
        choice.sharding.name,
        f"{held.weights / GIB:.2f}",
        f"{held.trained / GIB:.3f}",
        f"{held.buffers / GIB:.2f}",
        f"{none / GIB:.2f} / {full / GIB:.2f}",
        choice.recompute if choice.fits(plan.cluster) else "does not fit",
        f"{held.gpu / GIB:.1f}",
        f"{held.host_per_node / GIB:.1f}",
        f"{choice.traffic.sent_per_gpu() / 1e9:.3f}",
        f"{choice.traffic.across_nodes_per_node() / 1e9:.3f}",
        f"{choice.duration.step:.2f}",
    )


def recommendation(plan: Plan) -> str:
    cluster, folder = plan.cluster, Path(plan.recipe.training.deepspeed).parent
    if plan.best is None:
        least = min(plan.choices, key=lambda c: c.memory.gpu)
        return (
            f"{cluster.gpus} GPUs: nothing fits; {least.sharding.name} comes closest with"
            f" {(least.memory.gpu + RESERVE) / GIB:.0f} of {cluster.gpu_memory / GIB:.0f} GiB. Take more GPUs, or a"
            " smaller training.micro_batch"
        )
    best = plan.best
    left = f", {best.traffic.across_nodes_per_node() / 1e9:.3f} GB out of each node" if cluster.nodes > 1 else ""
    return (
        f"{cluster.gpus} GPUs: take training.deepspeed={folder / best.sharding.name}.json"
        f" training.recompute={best.recompute}: the fastest that fits, with"
        f" {(best.memory.gpu + RESERVE) / GIB:.0f} of {cluster.gpu_memory / GIB:.0f} GiB{left} and about"
        f" {best.duration.step:.2f} s per step of {plan.recipe.training.global_batch} samples"
    )


def assumptions(plan: Plan, tokens: int) -> list[str]:
    cluster = plan.cluster
    return [
        "GiB per GPU: weights, trained tensors with optimizer and gradients, buffers, activations without / with"
        " recomputation, the policy it fits with, and the sum under that; GiB of pinned host memory per node; GB"
        " sent per step; seconds per step.",
        "Weights, trained and bytes sent are exact; activations are what the model's operations hold; the seconds are"
        " an estimate.",
        f"Assumed: {tokens} text tokens per sample, {SUPERVISED} of them supervised, every sample with an image;"
        f" {RESERVE / GIB:.0f} GiB of a GPU for CUDA, NCCL and gaps beside the sum.",
        "Sent: rings through the nodes; out/node leaves each node, and as much enters. hpZ's groups are the nodes"
        f" ({cluster.on_node} GPUs: zero_hpz_partition_size).",
        f"Step: the longer of computing ({EFFICIENCY:.0%} of {cluster.gpu_flops / 1e12:.0f} TFLOP/s) and gathering"
        f" weights, then gradients and updated parameters; links at {LINK_SHARE:.0%} of {cluster.intra / 1e9:.0f} GB/s"
        f" per GPU inside a node and {cluster.interconnect * 8 / 1e9:.0f} Gb/s per node between them;"
        f" {HOST / 1e9:.0f} GB/s from host memory.",
    ]


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """A Markdown table; the first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    made = ["| " + " | ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|"
    return [made[0], rule, *made[1:]]
