"""The model of a recipe (model.py), in two phases, so that the frozen part can be partitioned and loaded by itself:
`build_frozen`, then `add_trainables`, which draws the trainable values from the recipe's seed.
"""

import torch

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.decoder import DecoderTower
from dsmemvp.backbones.families import check_window
from dsmemvp.backbones.linear import quantize_linears
from dsmemvp.backbones.text_encoder import TextEncoder
from dsmemvp.backbones.vision_families import built_blocks
from dsmemvp.config.methods import MethodSettings
from dsmemvp.config.recipe import Recipe
from dsmemvp.errors import UserError
from dsmemvp.model import Teacher, VisualLanguageModel
from dsmemvp.prompts import Sizes, VisualPrompt, build_method, method_class
from dsmemvp.prompts.interface import Stage


def sizes_of(configs: Configs, settings: MethodSettings) -> Sizes:
    tokens, width = configs.features(settings.vision_features())
    language = configs.language
    return Sizes(tokens, width, language.hidden_size, built_blocks(configs.vision), language.num_hidden_layers)


def build_frozen(recipe: Recipe, configs: Configs, stage: Stage | None = None) -> VisualLanguageModel:
    """The model without anything of the method's own, on torch's default device and in its default type, with the
    towers that the stage has (None: all). Of it only the language model's norms may be trained, if the method asks for
    it. Raises UserError for features that cannot be cached, and for sizes that cannot be quantised, as the recipe
    says."""
    decoder, vision = (stage.decoder, stage.vision) if stage else (True, True)
    method, features = method_class(recipe.method.name), recipe.method.vision_features()
    cached, sees_images = bool(recipe.vision.cache_features), vision and method.sees_images
    if vision:
        check_features(recipe)
    model = VisualLanguageModel(configs, sees_images, recipe.vision.statistics, features, cached, decoder)
    model.requires_grad_(False)
    if decoder and recipe.model.quantize != "none":
        fitted = recipe.model.quantize == "nf4" and recipe.model.nf4_scales == "fitted"
        quantize_linears(model.language.layers, recipe.model.quantize, fitted)
    for norm in model.language.norms() if decoder and recipe.method.trains_norms() else ():
        norm.weight.requires_grad_(True)
    return model


def check_features(recipe: Recipe) -> None:
    """Raises UserError if features of pictures cannot be computed before training, as the recipe says."""
    method = method_class(recipe.method.name)
    if recipe.vision.cache_features and method.sees_images and method.acts_in_tower:
        raise UserError(
            f"vision.cache_features: method {recipe.method.name} acts inside of the vision tower, which therefore runs"
            " in every step; leave it out"
        )


def build_empty(
    recipe: Recipe, configs: Configs, device: torch.device, stage: Stage | None = None
) -> VisualLanguageModel:
    """As `build_frozen`, with parameters on the meta device, which take no memory and no time, and all else on
    `device`."""
    with torch.device("meta"):
        model = build_frozen(recipe, configs, stage)
    if model.vision is not None:
        model.vision.compute_buffers(device)
    empty = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    assert not empty, f"buffers without values: {empty}"
    return model


def add_trainables(model: VisualLanguageModel, recipe: Recipe, configs: Configs, stage: Stage | None = None) -> None:
    """Attach the method and the vision adapters, the same values on every rank, for any number of ranks and in every
    stage. None: the whole method, and the last stage has begun."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model.method = build_method(recipe.method, sizes_of(configs, recipe.method))
        model.method.begin_stage(stage or model.method.stages()[-1])
        model.teacher = take_apart(model.method, stage) if stage else None
        if model.vision is not None:
            model.vision.add_adapters(recipe.vision, [s.block for s in model.schedule() if s.tower == "vision"])
        if isinstance(model.language, DecoderTower):
            model.language.replace_linears(model.method.replacement)
    check_window(configs.language, recipe.data.max_length, sum(place.count for place in model.method.reserved()))
    policy = recipe.training.recompute
    if policy == "auto" and isinstance(model.language, TextEncoder):
        raise UserError("training.recompute: auto counts what a decoder keeps; take elementwise or full")
    if policy == "auto":
        policy = "elementwise"  # until a budget chooses (training/engine.py)
    model.set_recompute(policy, "full" if policy == "full" else "none")


def take_apart(method: VisualPrompt, stage: Stage) -> Teacher | None:
    """Take out of a method that has been built what takes no part in the stage: its teacher, which is returned, and the
    modules and tensors that `modules` does not name. They become None."""
    teacher = method.teacher(stage)
    name = next((name for name, module in method.named_modules() if module is teacher), "")
    assert teacher is None or name, "a teacher is one of the method's own modules"
    if teacher is not None:
        parent, _, leaf = name.rpartition(".")
        setattr(method.get_submodule(parent), leaf, None)
    own = [name for name, _ in (*method.named_children(), *method.named_parameters(recurse=False))]
    for other in own:
        if stage.modules and not other.startswith(stage.modules):
            setattr(method, other, None)
    return None if teacher is None else Teacher(f"method.{name}.", teacher)
