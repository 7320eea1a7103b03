"""What recompute=auto chooses is told when it changes, and only then."""

from types import SimpleNamespace
from typing import Any

import torch

from dsmemvp.training.mixture import Mixture


def _batch(tokens: int, images: int = 1) -> Any:
    return SimpleNamespace(tokens=torch.zeros(tokens), images=torch.zeros(images, 3, 2, 2))


def _choose(tokens: int, images: int) -> list[Any]:
    if tokens < 100:
        return ["elementwise"] * 4
    return ["elementwise", "full", "mlp" if images else "full", "elementwise"]


def test_it_is_told_when_it_changes_with_a_zero_for_what_is_gone():
    mixture = Mixture(_choose)
    numbers, line = mixture.of([_batch(20), _batch(30, 0)])
    assert numbers == {"training/layers_elementwise": 4.0}
    assert line == "for 30 tokens and 0 images layers keep 4 elementwise"
    assert mixture.of([_batch(90)]) == ({}, "")
    numbers, line = mixture.of([_batch(90), _batch(100)])
    assert numbers == {"training/layers_elementwise": 2.0, "training/layers_mlp": 1.0, "training/layers_full": 1.0}
    assert line == "for 100 tokens and 1 image layers keep 2 elementwise, 1 mlp, 1 full"
    numbers, _ = mixture.of([_batch(100, 0)])
    assert numbers == {"training/layers_elementwise": 2.0, "training/layers_mlp": 0.0, "training/layers_full": 2.0}
    numbers, _ = mixture.of([_batch(1)])
    assert numbers == {"training/layers_elementwise": 4.0, "training/layers_full": 0.0}


def test_a_policy_that_the_recipe_names_is_not_told():
    assert Mixture(None).of([_batch(20)]) == ({}, "")
