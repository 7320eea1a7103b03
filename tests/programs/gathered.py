"""On every rank: values and moments set, gathered, trained for a step and gathered again, under every ZeRO stage and in
both types that a module computes in.

Argument: where to write the findings."""

import json
import os
import sys
from pathlib import Path

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import nn

from dsmemvp.checkpoints.checkpoint import MOMENTS
from dsmemvp.config.recipe import Training
from dsmemvp.distributed.ranks import Ranks, join_ranks, leave_ranks
from dsmemvp.training.engine import parameter_groups
from dsmemvp.training.master_weights import MasterWeights

SHAPES = {"one": (1,), "wide": (3, 7), "bias": (5,), "long": (41, 3), "scale": (2,)}
"""None can be cut into equal pieces by every number of ranks, and some ranks have nothing of `one`."""


class Toy(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.tensors = nn.ParameterDict({name: nn.Parameter(torch.zeros(s, dtype=dtype)) for name, s in SHAPES.items()})

    def forward(self, x):
        return sum((tensor.float() * (x + tensor.numel())).square().sum() for tensor in self.tensors.values())


def main(out: str) -> None:
    ranks = join_ranks(seconds=600)
    findings = {
        f"ZeRO-{stage}, {dtype}": examine(ranks, stage, dtype)
        for stage in (1, 2, 3)
        for dtype in (torch.bfloat16, torch.float32)
    }
    if ranks.first:
        Path(out).write_text(json.dumps(findings))
    leave_ranks()
    os._exit(0)  # as dsmemvp/__main__.py does, and why


def examine(ranks: Ranks, stage: int, dtype: torch.dtype) -> dict[str, float]:
    """Numbers that should be zero, and some that should not."""
    model = Toy(dtype)
    trained = dict(model.tensors.items())
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(parameter_groups(trained, Training(weight_decay=0.1)), lr=0.01),
        config={
            "train_batch_size": ranks.world,
            "bf16": {"enabled": dtype == torch.bfloat16},
            "data_types": {"grad_accum_dtype": "fp32"},
            "zero_optimization": {"stage": stage},
        },
        dist_init_required=False,
    )
    weights = MasterWeights(engine, trained, ranks, partitioned=stage == 3)
    weights.set_moments({}, updates=0)

    values, moments = drawn(1, SHAPES), drawn(2, {f"{n}.{m}": s for n, s in SHAPES.items() for m in MOMENTS})
    weights.set(values)
    weights.set_moments(moments, updates=7)
    assert weights.shapes() == SHAPES
    findings = {"values_differ_on": ranks.sums(different(weights.values(), values))[0], "updates": weights.updates()}
    gathered = weights.gather()
    weights.set(drawn(3, SHAPES))
    weights.values()  # must leave alone what was gathered, which may be being written
    if ranks.first:
        before, moments_before = gathered()
        findings["gathered_differ"] = different(before, values) + different(moments_before, moments)

    weights.set(values)
    engine.backward(engine(torch.tensor(0.5)))
    engine.step()
    full = {name: safe_get_full_fp32_param(p).clone() for name, p in trained.items()}
    full_moments = {
        f"{name}.{m}": safe_get_full_optimizer_state(p, m).clone() for name, p in trained.items() for m in MOMENTS
    }
    gathered = weights.gather()
    if ranks.first:
        now, moments_now = gathered()
        findings["trained"] = different(now, values)
        findings["from_deepspeeds_differ"] = different(now, full) + different(moments_now, full_moments)
        if stage < 3:  # under ZeRO-3 tensors are put together anew
            findings["moved"] = sum(now[name].data_ptr() != before[name].data_ptr() for name in now)
    engine.destroy()
    return findings


def drawn(seed: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def different(these: dict[str, torch.Tensor], those: dict[str, torch.Tensor]) -> int:
    assert these.keys() == those.keys()
    return sum(not torch.equal(these[name], those[name]) for name in these)


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
