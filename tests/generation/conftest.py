"""A run's folder as training leaves it, with random trained tensors."""

import pytest
import small
import torch

from dsmemvp.backbones.fingerprint import fingerprint
from dsmemvp.backbones.weights import Base, read_configs
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.checkpoints.checkpoint import State, save_checkpoint
from dsmemvp.config.reading import as_dict, read_recipe
from dsmemvp.training.monitor import write_json


@pytest.fixture
def run_folder(recipe_path, tmp_path):
    recipe = read_recipe(recipe_path)
    configs = read_configs(recipe)
    model = build_frozen(recipe, configs)
    with torch.random.fork_rng():
        add_trainables(model, recipe, configs)
    small.enliven(model)
    folder = tmp_path / "runs" / "tiny"
    values = {name: p.detach() for name, p in model.trainables().items()}
    state = State(step=3, recipe=as_dict(recipe), base=fingerprint(Base(recipe)))
    save_checkpoint(folder, state, values, {})
    write_json(folder / "recipe.json", as_dict(recipe))
    return folder


@pytest.fixture
def picture_path(tmp_path):
    from making import picture

    path = tmp_path / "cat.png"
    path.write_bytes(picture(size=(40, 30)))
    return path
