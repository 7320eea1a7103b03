"""The recording of the published implementation (memvp_tiny.safetensors) as a recipe, a model and a batch of ours."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from dsmemvp.config.recipe import Recipe
from dsmemvp.convert.convert import Options, convert
from dsmemvp.convert.files import tensors_in
from dsmemvp.data.batch import Item
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.prompts.memvp.published import Published

FILE = Path("reference") / "memvp_tiny.safetensors"
OPTIONS = Options(language_heads=3, vision_heads=2, eps=1e-5)


class Recording:
    """`folder` receives the converted weights."""

    def __init__(self, shared: Path, folder: Path):
        self.file = shared / FILE
        self.tensors = load_file(self.file)
        self.folder = folder
        self.images = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(11))
        self.images[1] = 0  # the text-only sample

    def write(self, shared: Path) -> None:
        convert(shared / FILE, self.folder, OPTIONS)

    def recipe(self) -> Recipe:
        recipe = Recipe(name="reference", output=str(self.folder))
        recipe.model.language_model = str(self.folder / "language_model")
        recipe.model.vision_tower = str(self.folder / "vision_tower")
        recipe.model.dtype = "fp32"
        recipe.method.slots, recipe.method.hidden, recipe.method.dropout = 272, 8, 0.0
        recipe.vision.adapter_dim, recipe.vision.adapter_dropout = 6, 0.0
        return recipe

    def trained(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "trained.safetensors")

    def gradients(self) -> dict[str, torch.Tensor]:
        """The recorded g.* tensors under our names; the last block's adapter, which has none, marks the last block."""
        stored = tensors_in(self.file)
        names = {n: n[2:] for n in stored if n.startswith("g.") or "resblocks.2.adapter_mlp" in n}
        ours = Published().trained_tensors({name: stored[n] for n, name in names.items()})
        return {name: tensor.read() for name, tensor in ours.items()}

    def batch(self, samples: tuple[int, ...] = (0, 1, 2)):
        """Our batch of the recorded samples; the text-only one has no image."""
        items = []
        for b in samples:
            tokens, labels = (self.tensors[f"in.{name}"][b].tolist() for name in ("tokens", "labels"))
            length = max(i for i, token in enumerate(tokens) if token) + 1
            prompt = next(i for i, label in enumerate(labels) if label)
            image = self.images[b] if self.tensors["in.indicators"][b] else None
            items.append(Item(b, EncodedText(tokens[:length], prompt, False), image))
        return make_batch(items, 224).batch
