"""What a recipe names: whether it is all there, and fits."""

from collections.abc import Callable
from pathlib import Path

from dsmemvp.data.encoder import recipe_encoder
from dsmemvp.data.manifest import check_files
from dsmemvp.data.sets import open_test_data, open_training_data
from dsmemvp.doctor.finding import Finding, Here, fail, ok
from dsmemvp.models.joined import Configs
from dsmemvp.models.weights import read_configs, tensor_files
from dsmemvp.recipe import Recipe
from dsmemvp.training.sharding import deepspeed_settings


def of_recipe(recipe: Recipe, here: Here) -> list[Finding]:
    """Every part is looked at, so that all that is missing is said at once. Weights are looked for, not read."""
    configs: list[Configs] = []
    findings = [
        _tried("weights", lambda: _weights(recipe, configs)),
        _tried("training data", lambda: _training(recipe)),
        _tried("test data", lambda: _test(recipe)),
        _tried("batch", lambda: _batch(recipe, here)),
    ]
    if configs:
        findings.insert(1, _tried("tokenizer", lambda: _tokenizer(recipe, configs[0])))
    return findings


def _tried(what: str, look: Callable[[], str]) -> Finding:
    try:
        return ok(what, look())
    except (ValueError, OSError) as error:
        return fail(what, str(error))


def _weights(recipe: Recipe, into: list[Configs]) -> str:
    into.append(read_configs(recipe))
    sizes = []
    for key, folder in (
        ("model.language_model", recipe.model.language_model),
        ("model.vision_tower", recipe.model.vision_tower),
    ):
        if not folder:
            raise ValueError(f"{key}: give the folder of its weights")
        files = set(tensor_files(Path(folder), key).values())
        sizes.append(f"{sum(file.stat().st_size for file in files) / 1e9:.2f} GB in {folder}")
    return ", ".join(sizes)


def _tokenizer(recipe: Recipe, configs: Configs) -> str:
    encoder = recipe_encoder(recipe, configs.resolution, configs.language.vocab_size)
    return str(encoder.tokenizer_path)


def _training(recipe: Recipe) -> str:
    data = open_training_data(recipe)
    check_files(*data.manifests)
    where = ", ".join(manifest.location for manifest in data.manifests)
    return f"{data.order.samples} samples and {data.order.steps} steps per epoch in {where}"


def _test(recipe: Recipe) -> str:
    manifest = open_test_data(recipe)
    check_files(manifest)
    return f"{manifest.samples} samples in {manifest.location}"


def _batch(recipe: Recipe, here: Here) -> str:
    settings = deepspeed_settings(recipe, here.world)
    training = recipe.training
    most = training.global_batch // training.micro_batch
    numbers = ", ".join(str(n) for n in range(1, most + 1) if most % n == 0)
    text = (
        f"{settings['gradient_accumulation_steps']} micro-steps of {training.micro_batch} samples on {here.world} ranks"
    )
    return f"{text}; {training.global_batch} samples can be dealt over {numbers} ranks"
