"""Decay groups, and the watch over gradients; single process."""

import pytest
import torch
from torch import nn

from dsmemvp.config.recipe import Training
from dsmemvp.errors import UserError
from dsmemvp.training.engine import parameter_groups
from dsmemvp.training.gradients import GradientWatch


def test_matrices_are_decayed_and_vectors_are_not():
    matrix, vector = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    assert parameter_groups({"m": matrix, "v": vector}, Training()) == [
        {"params": [matrix], "weight_decay": 0.02, "rate": 1.0},
        {"params": [vector], "weight_decay": 0.0, "rate": 1.0},
    ]
    assert len(parameter_groups({"m": matrix}, Training(weight_decay=0.0))) == 1


def test_tensors_by_the_beginnings_of_their_names_have_another_rate():
    matrix, vector, other = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
    training = Training(scaled_tensors=["a.", "b"], scaled_rate=0.8)
    assert parameter_groups({"a.m": matrix, "bias": vector, "c.a.": other}, training) == [
        {"params": [other], "weight_decay": 0.0, "rate": 1.0},
        {"params": [matrix], "weight_decay": 0.02, "rate": 0.8},
        {"params": [vector], "weight_decay": 0.0, "rate": 0.8},
    ]


class _OneRank:
    """Stands for the process group of a single process."""

    world = 1

    def sums(self, *numbers):
        return list(numbers)


def test_a_parameter_without_gradient_is_named():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    watch = GradientWatch({"used": used, "unused": unused})
    (used * 2).sum().backward()
    with pytest.raises(UserError, match="no gradient reached unused;"):
        watch.check_all_received(_OneRank())


def test_a_gradient_of_zero_counts_as_received():
    parameter = nn.Parameter(torch.ones(2))
    watch = GradientWatch({"p": parameter})
    (parameter * 0).sum().backward()
    watch.check_all_received(_OneRank())
