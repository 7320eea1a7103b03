"""The stages of a recipe's method, and what each of them trains, by name and shape, counted without memory."""

import math
from collections.abc import Sequence

import torch

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.linear import stored_shapes
from dsmemvp.building import add_trainables, build_frozen, sizes_of
from dsmemvp.config.recipe import Recipe
from dsmemvp.errors import UserError
from dsmemvp.prompts import build_method
from dsmemvp.prompts.interface import Stage


def stages_of(recipe: Recipe, configs: Configs) -> tuple[Stage, ...]:
    """The method's, one after another."""
    with torch.device("meta"):
        return tuple(build_method(recipe.method, sizes_of(configs, recipe.method)).stages())


def trainable_shapes(recipe: Recipe, configs: Configs, stage: Stage | None = None) -> dict[str, tuple[int, ...]]:
    """Of every tensor by its name that takes part in the stage (None: in any) and that some stage trains, without
    memory."""
    with torch.device("meta"):
        model = build_frozen(recipe, configs, stage)
        add_trainables(model, recipe, configs, stage)
    return {name: tuple(p.shape) for name, p in model.trainables().items()}


def count(recipe: Recipe, configs: Configs, stage: Stage | None = None) -> tuple[int, int]:
    """(parameters of these tensors, frozen parameters of the language model), counted without memory."""
    with torch.device("meta"):
        model = build_frozen(recipe, configs, stage)
        shapes = stored_shapes(model.language) if model.language is not None else {}
        frozen = sum(math.prod(shape) for p, shape in shapes.items() if not p.requires_grad)
        add_trainables(model, recipe, configs, stage)
    return sum(p.numel() for p in model.trainables().values()), frozen


def trained_shapes(recipe: Recipe, configs: Configs, stage: Stage) -> dict[str, tuple[int, ...]]:
    """Of every tensor by its name that the stage trains, without memory."""
    shapes = trainable_shapes(recipe, configs, stage)
    return {name: shape for name, shape in shapes.items() if not stage.trains or name.startswith(stage.trains)}


def stage_counts(recipe: Recipe, configs: Configs) -> dict[str, int]:
    """Trained parameters of every stage by its name, counted without memory."""
    stages = stages_of(recipe, configs)
    return {s.name: sum(map(math.prod, trained_shapes(recipe, configs, s).values())) for s in stages}


def check_scaled(recipe: Recipe, configs: Configs, stages: Sequence[Stage]) -> None:
    """Raises UserError for a beginning of names in training.scaled_tensors that no trained tensor has: of any of the
    method's `stages`, or of the one for which the recipe gives it."""
    key = "training.scaled_tensors"
    asked: list[tuple[str, str, Sequence[Stage]]] = [(key, start, stages) for start in recipe.training.scaled_tensors]
    for stage in stages:
        own = recipe.stages.get(stage.name, {}).get("training", {}).get("scaled_tensors", ())
        asked += [(f"stages.{stage.name}.{key}", start, [stage]) for start in own]
    trained = {stage.name: list(trained_shapes(recipe, configs, stage)) for stage in stages if asked}
    for key, start, where in asked:
        names = [name for stage in where for name in trained[stage.name]]
        if not any(name.startswith(start) for name in names):
            raise UserError(f"{key}: no trained tensor's name begins with {start!r}; one is {names[0]}")
