"""Models and checkpoints as a run leaves them."""

import torch

from dsmemvp.backbones.fingerprint import fingerprint
from dsmemvp.backbones.weights import Base, read_configs
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.checkpoints.checkpoint import State, save_checkpoint
from dsmemvp.config.reading import as_dict
from dsmemvp.config.recipe import Recipe
from dsmemvp.model import VisualLanguageModel


def built(recipe: Recipe) -> VisualLanguageModel:
    configs = read_configs(recipe)
    model = build_frozen(recipe, configs)
    Base(recipe).load(model)
    add_trainables(model, recipe, configs)
    return model.eval()


def saved(run, recipe: Recipe, trained: dict[str, torch.Tensor], epoch: int = 2):
    """A checkpoint as a run of this recipe leaves it."""
    moments = {f"{name}.{m}": torch.zeros_like(t) for name, t in trained.items() for m in ("exp_avg", "exp_avg_sq")}
    state = State(epoch, 12, 12, validation_loss=0.25, order={"data.train": ["1f"]}, recipe=as_dict(recipe))
    return save_checkpoint(run, State(**{**vars(state), "base": fingerprint(Base(recipe))}), trained, moments)
