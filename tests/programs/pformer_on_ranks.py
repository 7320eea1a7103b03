"""On every rank: P-Former's contrast on the rank's own captions, and the losses of pairs that are spread unevenly.

Arguments: folder of shared data, a folder for this test, where to write the findings."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from pformer_recording import Recording

from dsmemvp.data.packing import make_batch
from dsmemvp.distributed.ranks import join_ranks, leave_ranks
from dsmemvp.errors import UserError

SPREAD = {"even": ((0, 1), (2, 3)), "uneven": ((0, 1, 2), (3,)), "one rank alone": ((0, 1, 2, 3), ())}
LONE = {"one pair": ((0,), ()), "none": ((), ())}


def main(shared: str, folder: str, out: str) -> None:
    ranks = join_ranks(seconds=600)
    recording = Recording(Path(shared), Path(folder) / str(ranks.rank))
    own = {"contrast": contrast(recording, [2 * ranks.rank, 2 * ranks.rank + 1])}
    for name, spread in (SPREAD | LONE).items():
        own[name] = pairs(recording, list(spread[ranks.rank]))
    found = [json.loads(text) for text in ranks.gather([json.dumps(own)])]
    if ranks.first:
        Path(out).write_text(json.dumps(found))
    leave_ranks()
    os._exit(0)  # as dsmemvp/__main__.py does, and why


def contrast(recording: Recording, rows: list[int]) -> dict[str, float]:
    """Nothing masked."""
    model = recording.model(stages=["text"])
    batch = recording.batch(model, rows, images=False)
    state = model.method.begin(batch)
    loss = model.method.losses(state, batch)["contrast"] / len(rows)
    loss.backward()
    head = model.method.pformer.contrast
    gradient = head.projection.weight.grad
    return {
        "loss_c": loss.item(),
        "grad_text_proj_sum": gradient.sum().item(),
        "grad_text_proj_norm": gradient.norm().item(),
        "grad_temp": head.temperature.value.grad.item(),
    }


def pairs(recording: Recording, rows: list[int]) -> dict:
    """Sums of the losses of stage `align`, and of each tensor's gradient with fixed random numbers."""
    model = recording.model(stages=["align"])
    method = model.method
    stage = method.stages()[0]
    method.begin_stage(stage, method.teacher(stage))
    if rows:
        batch = recording.batch(model, rows)
        visual = recording.tensors["in.image_embeds"][rows]
    else:
        captions = recording.captions([0], masked=False)
        empty = replace(captions, mask_BL=torch.zeros_like(captions.mask_BL), lengths=(0,))
        batch = replace(make_batch([], 16, method.reserved()).batch, captions=empty)
        visual = recording.tensors["in.image_embeds"][:1]
    try:
        losses = method.losses(method.finish("vision", visual, {}, batch), batch)
    except UserError as error:
        return {"error": str(error)}
    torch.stack([losses[name] for name in stage.losses]).sum().backward()
    generator = torch.Generator().manual_seed(1)
    seen = {}
    for name, parameter in model.trainables().items():
        if name.startswith(stage.trains):
            assert parameter.grad is not None, name
            seen[name] = (parameter.grad * torch.randn(parameter.shape, generator=generator)).sum().item()
    counts = method.loss_counts(batch)
    return {"losses": {name: value.item() for name, value in losses.items()}, "gradients": seen, "counts": counts}


if __name__ == "__main__":
    main(*sys.argv[-3:])
