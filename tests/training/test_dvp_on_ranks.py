"""DVP on two ranks, under ZeRO-3 and replicated: the loss and the gradients of one process."""

import json
from pathlib import Path

import pytest
import torch
from launch import run_on_ranks
from programs import dvp_on_ranks

from dsmemvp.backbones.weights import Base, read_configs
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.config.reading import read_recipe
from dsmemvp.model import loss_sum

PROGRAM = Path(__file__).parent.parent / "programs" / "dvp_on_ranks.py"


def _alone(recipe_path, images: bool) -> dict[str, torch.Tensor]:
    recipe = read_recipe(recipe_path, dvp_on_ranks.SETTINGS)
    configs = read_configs(recipe)
    model = build_frozen(recipe, configs)
    Base(recipe).load(model)
    add_trainables(model, recipe, configs)
    batch = dvp_on_ranks.batch((0, 1, 2, 3), configs.resolution, model.method.reserved(), images)
    loss = loss_sum(model(batch)[0], batch.targets)
    loss.backward()
    return {"loss": loss.item(), **{name: p.grad for name, p in model.trainables().items()}}


@pytest.mark.ranks
def test_two_ranks_find_the_loss_and_the_gradients_of_one_process(recipe_path, repository, tmp_path):
    settings = json.loads((repository / "ds_configs" / "zero3.json").read_text())
    # nothing stays resident: every parameter is gathered for use and released
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "zero3.json").write_text(json.dumps(settings))
    paths = [str(tmp_path / "zero3.json"), str(repository / "ds_configs" / "replicated.json")]
    run_on_ranks(PROGRAM, 2, str(recipe_path), str(tmp_path / "found"), *paths)
    found = torch.load(tmp_path / "found")
    with_images, without = _alone(recipe_path, True), _alone(recipe_path, False)
    assert (
        len(with_images) == 1 + 8 + 2 * 2 * 4 + 5 + 2 * 2
    )  # loss, attention, the decoder's adapters, norms, the tower's adapters
    for path in paths:
        for what, wanted in (*((policy, with_images) for policy in dvp_on_ranks.POLICIES), ("without images", without)):
            own = found[f"{path} {what}"]
            assert own.keys() == wanted.keys()
            assert own.pop("loss") == pytest.approx(wanted["loss"], abs=1e-5)
            for name, gradient in own.items():
                assert (gradient - wanted[name]).norm() <= 1e-4 * wanted[name].norm() + 1e-6, (path, what, name)
        for name, gradient in found[f"{path} without images"].items():
            # what sees only images has a gradient of zero, not its last one; the others have one
            seen = name.startswith(("vision.", "method."))
            assert (gradient.abs().max() == 0) == seen, (path, name)
