"""What the run on fake tensors counts, against a real forward of the same model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsmemvp.backbones.weights import configs_of_shapes
from dsmemvp.config.reading import read_recipe
from dsmemvp.model import add_trainables, build_frozen, count, loss_sum
from dsmemvp.planning.trace import example_batch, trace

RECIPE = Path(__file__).parent.parent.parent / "recipes" / "scienceqa-13b.yaml"
TINY = ["model.language_shape=llama-tiny", "model.vision_shape=clip-tiny", "model.dtype=fp32", "training.micro_batch=2"]


@pytest.mark.parametrize("method", ["memvp", "input_space"])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_activations_are_what_a_real_forward_saves(method, recompute):
    recipe = read_recipe(RECIPE, [*TINY, f"method.name={method}", f"training.recompute={recompute}"])
    configs = configs_of_shapes(recipe)
    model = build_frozen(recipe, configs)
    add_trainables(model, recipe, configs)
    batch = example_batch(recipe, configs, model.method.reserved(), tokens=120)
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    known |= {t.untyped_storage().data_ptr() for t in vars(batch).values() if isinstance(t, torch.Tensor)}
    saved = {}

    def note(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    def note_state(module, given, state):
        for tensor in state.values() if isinstance(state, dict) else (state,):
            note(tensor)

    if recompute == "full":  # checkpointing keeps what a block is given by reference, unseen by hooks
        model.language.layers[0].register_forward_pre_hook(
            lambda _, given: note_state(_, (), {"cos": given[1][0], "sin": given[1][1]})
        )
        maker = model.method if method == "memvp" else model.method.projector
        maker.register_forward_hook(note_state)

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss_sum(model(batch)[0], batch.targets)
    held = sum(size for place, (size, _) in saved.items() if place not in known)
    found = trace(recipe, configs, 120, recompute)
    assert found.held == pytest.approx(held, rel=0.02)
    assert found.peak > found.held


def test_recomputing_holds_less_and_computes_more():
    recipe = read_recipe(RECIPE, TINY)
    none, full = (trace(recipe, configs_of_shapes(recipe), 120, policy) for policy in ("none", "full"))
    assert full.peak < none.peak / 2
    assert 1.3 < full.flops / none.flops < 1.6  # 6N instead of 4N per token, less what no gradient goes through


def test_a_frozen_language_model_costs_4n_flops_per_token():
    recipe = read_recipe(RECIPE, ["model.language_shape=llama-7b", "training.micro_batch=1"])
    configs = configs_of_shapes(recipe)
    with_image = trace(recipe, configs, 200, "none").flops
    longer = trace(recipe, configs, 400, "none").flops
    frozen = count(recipe, configs)[1]
    # the memory's branch adds 1 to 2 %; the first layer has no backward and embeddings are no product
    assert (longer - with_image) / 200 == pytest.approx(4 * frozen, rel=0.04)


def test_parameters_are_the_models_own():
    recipe = read_recipe(RECIPE, TINY)
    configs = configs_of_shapes(recipe)
    found = trace(replace(recipe), configs, 50, "none")
    trained, _ = count(recipe, configs)
    assert sum(p.numel for p in found.parameters if p.trained) == trained
    assert all(p.decayed is (".bias" not in p.name) for p in found.parameters if p.trained)
