"""MemVP's trained tensors between the published names and this package's, both ways.

Published checkpoints also hold what no forward pass uses: the modality embedding, and the adapter of the last vision
block, which is not run. Both are left out here, and made anew on the way back.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dsmemvp.errors import UserError

STARTS = {
    "adapter_emb1": "method.key_positions",
    "adapter_emb2": "method.value_positions",
    "adapter_proj.": "method.projector.",
}
DEAD = "adapter_modality_embedding.weight"
ADAPTER = "backbone.visual.transformer.resblocks.{}.adapter_mlp.fc{}.weight"
ENDS = {"1": "down", "2": "up"}


class Published:
    options: Mapping[str, str] = {
        "emb": "method.slots",
        "hidden_proj": "method.hidden",
        "adapter_scale": "method.output_scale",
    }
    fixed: Mapping[str, Any] = {
        "method.visual_scale": 0.01,
        "method.class_token": False,
        "method.scores": "joint",
        "vision.adapter_scale": 0.1,
        "vision.statistics": "imagenet",
    }
    unused: Sequence[str] = (DEAD,)

    def trained_tensors(self, published: Mapping[str, Any]) -> dict[str, Any]:
        """This package's names; positions, stored as [1, N, d], become [N, d]."""
        blocks = [int(m[1]) for name in published if (m := re.search(r"visual\.transformer\.resblocks\.(\d+)\.", name))]
        tensors: dict[str, Any] = {}
        for name, tensor in published.items():
            adapter = re.search(r"visual\.transformer\.resblocks\.(\d+)\.adapter_mlp\.fc([12])\.weight$", name)
            start = next((s for s in STARTS if name.startswith(s)), None)
            if adapter and int(adapter[1]) < max(blocks):
                tensors[f"vision.layers.{adapter[1]}.adapter.{ENDS[adapter[2]]}.weight"] = tensor
            elif start:
                if len(tensor.shape) == 3:
                    tensor = tensor.changed(lambda t: t[0], tensor.shape[1:])
                tensors[STARTS[start] + name[len(start) :]] = tensor
        return tensors

    def published_names(self, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The way back, with the "module." that the published code's own checkpoints have, and zeros for what no
        forward pass uses. Raises UserError for tensors that have no published name."""
        published: dict[str, torch.Tensor] = {}
        adapters = {}
        for name, tensor in trained.items():
            adapter = re.fullmatch(r"vision\.layers\.(\d+)\.adapter\.(down|up)\.weight", name)
            ours = next((s for s in STARTS.values() if name.startswith(s)), None)
            if adapter:
                number = next(n for n, end in ENDS.items() if end == adapter[2])
                adapters[int(adapter[1]), number] = tensor
            elif ours:
                start = next(theirs for theirs, s in STARTS.items() if s == ours)
                published[start + name[len(ours) :]] = tensor[None] if name.endswith("_positions") else tensor
            else:
                raise UserError(f"{name} has no place in the published layout, which is MemVP's alone")
        if not adapters:
            raise UserError("vision.adapter_dim: is 0, but the published layout has an adapter in every vision block")
        last = max(block for block, _ in adapters)
        for number in ENDS:
            adapters[last + 1, number] = torch.zeros_like(adapters[last, number])
        for (block, number), tensor in sorted(adapters.items()):
            published[ADAPTER.format(block, number)] = tensor
        positions = published["adapter_emb1"]
        published[DEAD] = torch.zeros(2, positions.shape[-1], dtype=positions.dtype)
        return {f"module.{name}": tensor.contiguous() for name, tensor in published.items()}

    def needs(self, recipe: Any) -> str:
        method, vision = recipe.method, recipe.vision
        return (
            f"emb {method.slots}, hidden_proj {method.hidden}, adapter_scale {method.output_scale} and vision adapters"
            f" of width {vision.adapter_dim}"
        )
