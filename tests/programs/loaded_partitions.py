"""On every rank: builds and loads the model as runs do, and compares what is then gathered with the files.

Arguments: a JSON file with the recipe's overrides per case, where to write the findings.
"""

import json
import os
import sys
from pathlib import Path

import deepspeed
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from dsmemvp.backbones.linear import Linear
from dsmemvp.backbones.quantized import quantize
from dsmemvp.backbones.weights import Base, read_configs
from dsmemvp.config.reading import read_recipe
from dsmemvp.distributed.ranks import join_ranks, leave_ranks
from dsmemvp.dtypes import NAMED
from dsmemvp.planning.deepspeed_settings import deepspeed_settings
from dsmemvp.training.model_loading import build_model


def main(given: str, out: str) -> None:
    wanted, ranks = json.loads(Path(given).read_text()), join_ranks(seconds=600)
    findings = {}
    for case, overrides in wanted["cases"].items():
        overrides = [text.replace("RANK", str(ranks.rank)) for text in overrides]  # a node of its own for each
        recipe = read_recipe(wanted["recipe"], overrides)
        try:
            findings[case] = _loaded(recipe, ranks)
        except (ValueError, OSError) as error:
            findings[case] = f"{type(error).__name__}: {error}"
    everyone = ranks.gather([json.dumps(findings)])
    if ranks.first:
        Path(out).write_text(json.dumps([json.loads(row) for row in everyone]))
    leave_ranks()
    os._exit(0)  # as dsmemvp/__main__.py does, and why


def _loaded(recipe, ranks) -> dict:
    counts = []

    def load(model, recipe) -> None:
        before = _read_by_the_process()
        counts.append(Base(recipe).load(model))
        counts.append(_read_by_the_process() - before)

    settings = deepspeed_settings(recipe, ranks.world)
    with _Collectives() as sent:
        model = build_model(recipe, read_configs(recipe), settings, ranks, load)
    stored = {f"language.{name.removeprefix('model.')}": t for name, t in _stored(recipe.model.language_model).items()}
    for name, tensor in _stored(recipe.model.vision_tower).items():
        stored[f"vision.{name.removeprefix('vision_model.').removeprefix('encoder.')}"] = tensor
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    expected = {name: stored[name].to(NAMED[recipe.model.dtype]) for name in frozen if name in stored}
    for name, part in model.named_modules():
        if isinstance(part, Linear) and part.layout:
            dtype, values = NAMED[recipe.model.dtype], stored[f"{name}.weight"].float()
            codes, scales = quantize(part.layout, values.view(-1, part.layout.unit), dtype)
            expected |= {f"{name}.weight": codes.view(part.layout.codes_shape), f"{name}.weight_scale": scales}
    wrong = [name for name in frozen if not _equal(frozen[name], expected[name])]
    buffers = {name: buffer.tolist() for name, buffer in model.named_buffers()}
    return {
        "wrong": wrong,
        "compared": len(frozen),
        "elements": sum(expected[name].numel() for name in frozen),
        "bytes": sum(stored[name].nbytes for name in frozen if name in stored),
        "quantised": sum(name.endswith("weight_scale") for name in frozen),
        "read": counts[0],
        "read_by_the_process": counts[1],
        "held": sum(getattr(p, "ds_tensor", p).numel() for p in frozen.values()),
        "sent": sent.bytes,
        "buffers": buffers,
        "linear": sorted({type(m).__module__ for m in model.modules() if isinstance(m, torch.nn.Linear)}),
    }


def _equal(parameter, expected: torch.Tensor) -> bool:
    if not hasattr(parameter, "ds_tensor"):
        return torch.equal(parameter, expected)
    with deepspeed.zero.GatheredParameters([parameter]):
        right = parameter.dtype == expected.dtype and torch.equal(parameter, expected)
    if parameter.ds_secondary_tensor is not None:
        # as forward gathers it: out of the copies inside the group
        parameter.all_gather_coalesced([parameter]).wait()
        right &= torch.equal(parameter, expected)
        parameter.partition()
    return right


def _stored(folder: str) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in Path(folder).glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


def _read_by_the_process() -> int:
    """Bytes that this process has asked the system for."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


class _Collectives(TorchDispatchMode):
    """Bytes of the buffers of all collectives."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            flat = torch.utils._pytree.tree_leaves((args, kwargs))
            self.bytes += max((t.nbytes for t in flat if isinstance(t, torch.Tensor)), default=0)
        return func(*args, **(kwargs or {}))


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
