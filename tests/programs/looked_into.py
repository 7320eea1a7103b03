"""On every rank: a run looked into, from Python. Arguments: the run's folder, a DeepSpeed configuration, where to write
what was found."""

import os
import sys

import torch
from safetensors.torch import save_file

from dsmemvp.checkpoints.loading import load_run
from dsmemvp.distributed.ranks import join_ranks, leave_ranks
from dsmemvp.inspection.board import board_report
from dsmemvp.inspection.look import open_model


def main(run: str, settings: str, out: str) -> None:
    ranks = join_ranks(seconds=600)
    opened = open_model(load_run(run, [f"training.deepspeed={settings}"]), ranks)
    against = opened.average()
    seen = opened.look(opened.sample(2, test=True), against=against)
    probe = seen.probe
    samples = [opened.sample(n, test=True) for n in (0, 1, 4)]
    report = board_report(opened.model, opened.forward, opened.collator, opened.tokenizer, samples, {"t": "one"})
    if ranks.first:
        found = {"activation": probe.activation, "contribution": probe.contribution, "change": probe.change}
        found |= {"branch": probe.branch_norm, "feed_forward": probe.feed_forward_norm, "key": probe.key_norm}
        found |= {f"scalar {name}": torch.tensor(value) for name, value in report.scalars.items()}
        found |= {f"histogram {name}": values for name, values in report.histograms.items()}
        found |= {f"image {name}": torch.from_numpy(pixels.copy()) for name, pixels in report.images.items()}
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, out)
    leave_ranks()
    os._exit(0)  # as dsmemvp/__main__.py does, and why


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
