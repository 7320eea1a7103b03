"""What a recipe's model reads: its configs and the collator that makes its batches, without any weights."""

from dataclasses import dataclass, replace

import torch

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.weights import Base
from dsmemvp.building import sizes_of
from dsmemvp.config.recipe import Recipe
from dsmemvp.config.stages import check_stage
from dsmemvp.data.captions import CaptionReader
from dsmemvp.data.collator import Collator, recipe_collator
from dsmemvp.prompts import VisualPrompt, build_method
from dsmemvp.prompts.interface import Stage


@dataclass(frozen=True)
class Inputs:
    base: Base
    """What has been read of the frozen models, kept for those who need it next."""
    collator: Collator
    """For training, with the places that the method reserves."""
    method: VisualPrompt
    """On the meta device: what it reserves and its stages, not its values."""
    stage: Stage
    """The one that these are the inputs of."""

    @property
    def configs(self) -> Configs:
        return self.base.configs


def open_inputs(recipe: Recipe, base: Base | None = None, stage: str = "") -> Inputs:
    """Reads only the models' config.json (the shapes, if no folder is given) and the tokenizers. `base` is the
    recipe's, if it was opened before; `stage` is the name of one of the method's (empty: the last), whose own settings
    `recipe` has. Raises UserError."""
    base = base or Base(recipe)
    configs = base.configs
    with torch.device("meta"):
        method = build_method(recipe.method, sizes_of(configs, recipe.method))
    check_stage(recipe, stage)
    own = next(each for each in reversed(method.stages()) if stage in ("", each.name))
    method.begin_stage(own)
    collator = recipe_collator(recipe, configs.resolution, configs.language.vocab_size)
    text = method.captions()
    reader = None if text is None else CaptionReader(text, recipe.seed)
    if reader is not None:
        assert reader.pieces  # what is wrong with its file is said here, not by a worker
    collator = replace(collator, reserved=tuple(method.reserved()), labels=method.labels(), caption_reader=reader)
    return Inputs(base, collator, method, own)


def stage_folders(recipe: Recipe, stage: Stage) -> tuple[str, ...]:
    """Of data.train the folders that a stage reads, none for all: those that the method names, unless the recipe names
    some for the stage."""
    return () if "train" in recipe.stages.get(stage.name, {}).get("data", {}) else stage.data
