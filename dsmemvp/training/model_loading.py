"""Recipe -> the model with its frozen weights; under ZeRO-3 a rank loads only its partitions of them."""

from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from torch import nn

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.partitioned import give_memory
from dsmemvp.backbones.quantized import check_form
from dsmemvp.backbones.weights import Base
from dsmemvp.building import add_trainables, build_empty
from dsmemvp.config.recipe import Recipe
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.dtypes import NAMED
from dsmemvp.model import VisualLanguageModel
from dsmemvp.planning.deepspeed_settings import partitioned
from dsmemvp.prompts.interface import Stage

WHOLE: dict[str, Any] = {"zero_optimization": {"stage": 0}}
"""Settings of a model that DeepSpeed has no part in."""
Load = Callable[[VisualLanguageModel, Recipe], object]


def load_base(base: Base, ranks: Ranks) -> Load:
    """Loads what `base` has opened already; the first rank says how far it is."""
    return lambda model, recipe: base.load(model, tell=ranks.first)


def build_model(
    recipe: Recipe,
    configs: Configs,
    settings: dict[str, Any],
    ranks: Ranks,
    load: Load | None = None,
    stage: Stage | None = None,
) -> VisualLanguageModel:
    """The model of a stage (None: with all towers and the whole method) with its frozen weights loaded (by `load`;
    None: from the recipe's folders). Under ZeRO-3 no rank ever holds more of the frozen part than its partitions and
    one tensor that has no values yet. Nothing is sent between ranks but whether all have loaded; errors are raised on
    all. Raises UserError if products of model.quantize cannot be computed here."""
    check_form(recipe.model.quantize, ranks.device)
    before = torch.get_default_dtype()
    torch.set_default_dtype(NAMED[recipe.model.dtype])
    try:
        model = build_empty(recipe, configs, ranks.device, stage)
    finally:
        torch.set_default_dtype(before)
    if partitioned(settings):
        give_memory(model, ranks.device, _cut(settings))
    else:
        give_memory(model, ranks.device)
    read = load or load_base(Base(recipe), ranks)
    ranks.together(lambda: read(model, recipe))
    add_trainables(model, recipe, configs, stage)
    return model


def _cut(settings: dict[str, Any]) -> Callable[[nn.Parameter], None]:
    """What makes a parameter ZeRO-3's and frees all but this rank's partition, values being of no interest yet.

    DeepSpeed's public ways (`zero.Init` around a constructor or a module) also broadcast every parameter from the first
    rank, so the two steps around that broadcast are called by themselves; the first one has no public name."""
    # a module without parameters: takes settings only, and turns on what they say of linear layers' memory; the type
    # comes from the settings, too, since DeepSpeed 0.19 takes an explicit float32 for bf16 on CPUs
    init: Any = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=settings)

    def cut(parameter: Any) -> None:
        init._convert_to_deepspeed_param(parameter)
        parameter.partition()

    return cut


def cast(trainables: dict[str, nn.Parameter], device: torch.device, dtype: torch.dtype) -> None:
    """To the device and type of the frozen part: DeepSpeed's gathers want one type."""
    for parameter in trainables.values():
        parameter.data = parameter.data.to(device, dtype)
