"""What needs no second rank: the seeds of dropout."""

import torch

from dsmemvp.training.ranks import seed_dropout


def _masks(seed: int, rank: int, epoch: int) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        seed_dropout(seed, rank, epoch)
        return torch.rand(8)


def test_dropout_is_the_same_for_the_same_run_and_another_on_every_rank_seed_and_restart():
    assert torch.equal(_masks(0, 0, 0), _masks(0, 0, 0))
    different = [_masks(0, 0, 0), _masks(0, 1, 0), _masks(1, 0, 0), _masks(0, 0, 1)]
    assert len({tuple(mask.tolist()) for mask in different}) == len(different)
