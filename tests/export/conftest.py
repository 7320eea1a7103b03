"""A trained recipe, its tensors and its run, for tests of exports."""

import pytest
import torch
from saved_runs import built, saved

from dsmemvp.config.reading import read_recipe
from dsmemvp.config.recipe import Recipe


@pytest.fixture
def recipe(recipe_path) -> Recipe:
    return read_recipe(recipe_path)


@pytest.fixture
def trained(recipe) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(p.shape) for name, p in built(recipe).trainables().items()}


@pytest.fixture
def run(tmp_path, recipe, trained):
    saved(tmp_path / "runs" / "tiny", recipe, trained)
    return tmp_path / "runs" / "tiny"
