"""The recording of the DVP authors' classes (dvp_reference.safetensors) as a model and a batch of ours."""

import json
from pathlib import Path

import small
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, LlamaConfig

from dsmemvp.backbones.configs import Configs
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.config.methods import method_settings
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import Item
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.model import VisualLanguageModel

FILE = Path("reference") / "dvp_reference.safetensors"
LINEARS = {"query": "q", "key": "k", "value": "v", "out": "merge"}
ADAPTER = "language.layers.{}.{}.adapter_{}"


class Recording:
    def __init__(self, shared: Path):
        self.tensors = load_file(shared / FILE)
        with safe_open(shared / FILE, "pt") as file:
            self.sizes = json.loads(file.metadata()["config"])

    def model(self, layer: int, adapters: bool, **more) -> VisualLanguageModel:
        sizes = self.sizes
        recipe = Recipe(name="x")
        recipe.method = method_settings(
            "dvp",
            layer=layer,
            placement="before_bos",
            width=sizes["mid"],
            heads=sizes["ca_heads"],
            adapter_ratio=sizes["adapter_ratio"] if adapters else 0,
            **more,
        )
        recipe.vision.adapter_dim = 0
        language = LlamaConfig(
            vocab_size=sizes["vocab"],
            hidden_size=sizes["hidden"],
            intermediate_size=sizes["inter"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            rms_norm_eps=sizes["rms_eps"],
        )
        vision = CLIPVisionConfig(
            hidden_size=sizes["d_v"], num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8
        )
        model = build_frozen(recipe, Configs(language, vision))
        add_trainables(model, recipe, Configs(language, vision))
        with torch.no_grad():
            named = dict(model.named_parameters())
            for theirs, ours in self.names(adapters).items():
                named[ours].copy_(self.tensors[f"w.{theirs}"])
        return model.eval()

    def names(self, adapters: bool) -> dict[str, str]:
        """Theirs -> ours."""
        stored = [name[2:] for name in self.tensors if name.startswith(("w.embed", "w.layers", "w.norm"))]
        names = {name: f"language.{name}" for name in stored}
        for ours, theirs in LINEARS.items():
            for part in ("weight", "bias"):
                names[f"ca.linear_{theirs}.{part}"] = f"method.attention.{ours}.{part}"
        for number in range(2 * self.sizes["layers"]) if adapters else ():
            for theirs, part in (("down_sampler", "down"), ("up_sampler", "up")):
                place = "mlp.down_proj" if number % 2 else "self_attn.o_proj"
                for kind in ("weight", "bias"):
                    ours = ADAPTER.format(number // 2, place, part)
                    names[f"adapters.{number}.{theirs}.{kind}"] = f"{ours}.{kind}"
        if adapters:
            for name, ours in names.items():
                if name.startswith("layers.") and name.endswith(("o_proj.weight", "down_proj.weight")):
                    assert ours == f"language.{name}"
        return names

    def batch(self, model: VisualLanguageModel, more: int = 0):
        """The recorded questions, each asking about a picture of its own; `more` samples of text alone between them."""
        items, pictures = [], small.pictures(2)
        for b, (ids, mask) in enumerate(
            zip(self.tensors["in.input_ids"], self.tensors["in.attention_mask"], strict=True)
        ):
            tokens = ids[: int(mask.sum())].tolist()
            items.append(Item(b, EncodedText(tokens, len(tokens), False, 1), pictures[b], labels=(b,)))
        others = [Item(7 + n, EncodedText([1, 4, 5 + n], 3, False, 1), None, labels=(0,)) for n in range(more)]
        given = [items[0], *others, items[1]]
        return make_batch(given, 16, model.method.reserved(), last_only=True, labels=model.method.labels()).batch


def walk(recording: Recording, model: VisualLanguageModel, batch) -> dict[str, torch.Tensor]:
    """The decoder's walk with the recorded image tokens in the place of the vision tower's."""
    found = {}

    def asked(module, given, out):
        found["query"], found["prompt"] = given[0][:, None], out[0]

    def finished(module, given, out):
        found["classify"] = out

    hooks = [model.method.attention.register_forward_hook(asked), model.language.norm.register_forward_hook(finished)]
    sites = [site for site in model.schedule() if site.tower == "decoder"]
    found["logits"], _ = model._walk(batch, {"visual": recording.tensors["in.visual_tokens"]}, sites)
    for hook in hooks:
        hook.remove()
    return found
