"""Recorded numbers of a method (shared/reference) as a model of ours, and what is compared with them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dsmemvp.backbones.weights import Base, read_configs
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import Batch
from dsmemvp.model import VisualLanguageModel, loss_sum


class Recording:
    """`folder` receives the frozen weights in Hugging Face layout."""

    file: Path
    """In the folder of shared data"""

    def __init__(self, shared: Path, folder: Path):
        self.tensors, self.folder = load_file(shared / self.file), folder
        with safe_open(shared / self.file, "pt") as file:
            self.spec = json.loads(file.metadata()["spec"])

    def write_part(self, part: str, config: Any, tensors: dict[str, torch.Tensor]) -> None:
        folder = self.folder / part
        folder.mkdir(parents=True)
        config.save_pretrained(folder)
        save_file(tensors, folder / "model.safetensors")

    def recipe(self, **settings: Any) -> Recipe:
        raise NotImplementedError

    def trained(self) -> dict[str, torch.Tensor]:
        """Under our names."""
        raise NotImplementedError

    def model(self, dtype: torch.dtype = torch.float32, **settings: Any) -> VisualLanguageModel:
        recipe = self.recipe(**settings)
        configs = read_configs(recipe)
        model = build_frozen(recipe, configs)
        Base(recipe).load(model)
        add_trainables(model, recipe, configs)
        trained = self.trained()
        for name, parameter in model.trainables().items():
            parameter.data.copy_(trained[name])
        return model.to(dtype)


def one_step(model: VisualLanguageModel, batch: Batch) -> tuple[torch.Tensor, float, dict[str, torch.Tensor]]:
    """-> logits, mean loss, gradients of all trainables"""
    model.zero_grad()
    logits, _ = model(batch)
    loss = loss_sum(logits, batch.targets) / batch.targets.numel()
    loss.backward()
    return logits.detach(), loss.item(), {name: p.grad.clone() for name, p in model.trainables().items()}


def check_close(found: torch.Tensor, recorded: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Relative to the largest entry."""
    assert (found - recorded).abs().max() <= tolerance * recorded.abs().max()
