"""What a recipe names: whether it is all there, and fits."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.weights import read_configs, tensor_files
from dsmemvp.building import sizes_of
from dsmemvp.config.hub import local
from dsmemvp.config.recipe import Recipe
from dsmemvp.config.stages import stage_recipe
from dsmemvp.counting import counted
from dsmemvp.data.collator import Collator, recipe_collator
from dsmemvp.data.datasets import (
    data_of,
    open_search_data,
    open_test_data,
    open_training_data,
    open_validation_data,
)
from dsmemvp.data.manifest import Manifest, check_files
from dsmemvp.doctor.finding import Finding, Here, fail, ok, warning
from dsmemvp.doctor.texts import Problem, longest_texts
from dsmemvp.errors import UserError
from dsmemvp.inputs import open_inputs, stage_folders
from dsmemvp.planning.deepspeed_settings import deepspeed_settings
from dsmemvp.prompts import VisualPrompt, build_method
from dsmemvp.training.loggers import check_loggers


def of_recipe(recipe: Recipe, here: Here) -> list[Finding]:
    """Every part is looked at, so that all that is missing is said at once. Weights are looked for, not read."""
    configs: list[Configs] = []
    methods: list[VisualPrompt] = []
    collators: list[Collator] = []
    findings = [_tried("weights", lambda: _weights(recipe, configs))]
    if configs:
        findings.append(_tried("method", lambda: _method(recipe, configs[0], methods)))
        findings.append(_tried("tokenizer", lambda: _tokenizer(recipe, configs[0], methods, collators)))
    for name in recipe.method.stage_names():
        findings += _of_stage(recipe, name, methods, collators, here)
    if recipe.data.search:
        findings.append(_tried("search data", lambda: _search(recipe, collators)))
    findings.append(_tried("test data", lambda: _test(recipe, collators)))
    findings.append(_tried("loggers", lambda: _loggers(recipe)))
    return findings


def _of_stage(
    recipe: Recipe, name: str, methods: list[VisualPrompt], collators: list[Collator], here: Here
) -> list[Finding]:
    own, names = stage_recipe(recipe, name), recipe.method.stage_names()
    of = f", stage {name}" if len(names) > 1 else ""
    without_decoder = any(not stage.decoder for m in methods for stage in m.stages() if stage.name == name)
    own_collators: list[Collator] = []
    into = own_collators if collators else None
    findings = [_tried(f"training data{of}", lambda: _training(own, name, into, of))]
    if own.data.validation and not without_decoder:
        findings.append(_tried(f"validation data{of}", lambda: _validation(own, own_collators, of)))
    return [*findings, _tried(f"batch{of}", lambda: _batch(own, here))]


def _tried(what: str, look: Callable[[], str | Finding]) -> Finding:
    try:
        found = look()
    except (ValueError, OSError) as error:
        return fail(what, str(error))
    return ok(what, found) if isinstance(found, str) else found


def _loggers(recipe: Recipe) -> str:
    check_loggers(recipe.training.loggers)
    return ", ".join(recipe.training.loggers) or "none"


def _weights(recipe: Recipe, into: list[Configs]) -> str:
    into.append(read_configs(recipe))
    sizes = []
    for key, folder in (
        ("model.language_model", recipe.model.language_model),
        ("model.vision_tower", recipe.model.vision_tower),
    ):
        if not folder:
            raise UserError(f"{key}: give the folder of its weights")
        files = set(tensor_files(Path(local(folder, key)), key).values())
        sizes.append(f"{sum(file.stat().st_size for file in files) / 1e9:.2f} GB in {folder}")
    return ", ".join(sizes)


def _method(recipe: Recipe, configs: Configs, into: list[VisualPrompt]) -> str:
    with torch.device("meta"):
        into.append(build_method(recipe.method, sizes_of(configs, recipe.method)))
    return f"{recipe.method.name} fits the two models"


def _tokenizer(recipe: Recipe, configs: Configs, methods: list[VisualPrompt], into: list[Collator]) -> str:
    """The collator is the method's own; without a method, texts are not looked at."""
    collator = recipe_collator(recipe, configs.resolution, configs.language.vocab_size)
    into += [replace(collator, reserved=tuple(m.reserved()), labels=m.labels()) for m in methods]
    return str(collator.tokenizer_path)


def _training(recipe: Recipe, stage: str, into: list[Collator] | None, of: str) -> Finding:
    """The collator is the stage's own; without a list to put it into, texts are not looked at."""
    data = open_training_data(recipe)
    if into is not None:
        inputs = open_inputs(recipe, stage=stage)
        into.append(inputs.collator)
        data = data_of(data, recipe, stage_folders(recipe, inputs.stage))
    where = ", ".join(manifest.location for manifest in data.manifests)
    text = f"{counted(data.order.samples, 'sample')} and {counted(data.order.steps, 'step')} per epoch in {where}"
    return _texts(f"training data{of}", text, data.manifests, into or [])


def _validation(recipe: Recipe, collators: list[Collator], of: str) -> Finding:
    data = open_validation_data(recipe)
    assert data is not None
    return _texts(f"validation data{of}", f"{counted(data.samples, 'sample')} in {data.location}", [data], collators)


def _search(recipe: Recipe, collators: list[Collator]) -> Finding:
    data, _ = open_search_data(recipe, ())
    return _texts("search data", f"{counted(data.samples, 'sample')} in {data.location}", [data], collators)


def _test(recipe: Recipe, collators: list[Collator]) -> Finding:
    data = open_test_data(recipe)
    answers = [replace(collator, answers=True) for collator in collators]
    return _texts("test data", f"{counted(data.samples, 'sample')} in {data.location}", [data], answers)


def _texts(what: str, text: str, manifests: Sequence[Manifest], collators: list[Collator]) -> Finding:
    """Their longest texts, if there is a tokenizer to look at them with."""
    check_files(*manifests)
    if not collators:
        return ok(what, text)
    (collator,) = collators
    looked: list[str] = []
    wrong: list[Problem] = []
    for manifest in manifests:
        about, problems = longest_texts(manifest, collator)
        looked.append(about)
        wrong += problems
    if not wrong:
        return ok(what, f"{text}; {', '.join(dict.fromkeys(looked))}")
    found = f"{text}; {wrong[0].message}" + (
        f" (and {counted(len(wrong) - 1, 'more sample')})" if len(wrong) > 1 else ""
    )
    needed = max(problem.needed for problem in wrong)
    longer = f"data.max_length={needed} takes those that are too long; " if needed else ""
    if collator.skip_bad:
        return warning(what, found, f"they are skipped; {longer}dsmemvp data check lists all")
    return fail(what, found, f"{longer}data.on_bad_sample=skip leaves them out; dsmemvp data check lists all")


def _batch(recipe: Recipe, here: Here) -> str:
    deepspeed_settings(recipe, here.world)  # what a run would refuse
    training = recipe.training
    steps = (
        f"micro-steps of up to {counted(training.micro_tokens, 'token')}"
        if training.micro_tokens
        else f"{counted(training.micro_steps(here.world), 'micro-step')} of {counted(training.micro_batch, 'sample')}"
    )
    return f"{counted(training.global_batch, 'sample')} over {counted(here.world, 'rank')}, in {steps}"
