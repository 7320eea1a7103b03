"""The loss on data.validation, which tells which checkpoints are best."""

from collections.abc import Callable

import torch

from dsmemvp.data.encoder import Encoder
from dsmemvp.data.loader import Share, evaluation_steps
from dsmemvp.data.manifest import Manifest
from dsmemvp.models.joined import loss_sum
from dsmemvp.training.engine import Trainer
from dsmemvp.training.ranks import Ranks


def validation_loss(
    trainer: Trainer,
    ranks: Ranks,
    manifest: Manifest,
    encoder: Encoder,
    batch: int,
    workers: int,
    between: Callable[[], object],
) -> float:
    """Per supervised token, over all samples, without dropout; `batch` samples per rank and forward. `between` is
    called before each of them and may raise. Raises ValueError where no sample can be used."""
    share = Share(ranks.rank, ranks.world, batch)
    total, tokens = 0.0, 0
    trainer.engine.eval()
    try:
        with torch.no_grad():
            for (part,) in ranks.in_step(evaluation_steps(manifest, encoder, share, workers)):
                between()
                part = part.to(ranks.device)
                total += loss_sum(trainer.engine(part), part.targets).item()
                tokens += part.targets.numel()
    finally:
        trainer.engine.train()
    loss, supervised = ranks.sums(total, tokens)
    if not supervised:
        raise ValueError(f"data.validation: no sample of {manifest.location} could be used")
    return loss / supervised
