"""A few steps of a random model on every rank, with all that is held and sent counted.

Arguments: a JSON file with the recipe's and the configurations' values, where to write the findings.
"""

import ctypes
import gc
import json
import os
import sys
from collections import Counter
from pathlib import Path

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPVisionConfig, LlamaConfig

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.partitioned import fill_randomly
from dsmemvp.config.reading import read_recipe
from dsmemvp.distributed.ranks import join_ranks, leave_ranks
from dsmemvp.model import loss_sum
from dsmemvp.planning.trace import example_batch
from dsmemvp.training.engine import build_trainer

STEPS = 3


def main(given: str, out: str) -> None:
    wanted, ranks = json.loads(Path(given).read_text()), join_ranks(seconds=600)
    recipe = read_recipe(wanted["recipe"], wanted["overrides"])
    configs = Configs(LlamaConfig(**wanted["language"]), CLIPVisionConfig(**wanted["vision"]))
    torch.manual_seed(0)
    engine = build_trainer(recipe, configs, ranks, load=fill_randomly).engine
    batch = example_batch(recipe, configs, engine.module.method.reserved(), wanted["tokens"])
    live = [0]
    for module in engine.module.modules():
        module.register_forward_pre_hook(lambda module, inputs: live.append(_live(engine.module)))
    for _ in range(STEPS):
        live.clear()
        with _Collectives() as sent:
            micro_steps = recipe.training.micro_steps(ranks.world)
            for i in range(micro_steps):
                engine.set_gradient_accumulation_boundary(i == micro_steps - 1)
                engine.backward(loss_sum(engine(batch)[0], batch.targets))
                engine.step()
    findings = {"collectives": sent.bytes, "storages": _storages(), "resident": _resident(), "live": max(live)}
    for parameter in engine.module.parameters():
        if not parameter.requires_grad:
            _let_go(parameter)
    findings["resident"] -= _resident()
    if ranks.first:
        Path(out).write_text(json.dumps(findings))
    leave_ranks()
    os._exit(0)  # as dsmemvp/__main__.py does, and why


class _Collectives(TorchDispatchMode):
    """Bytes of the buffers of every collective, by its name."""

    def __init__(self):
        super().__init__()
        self.bytes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            self.bytes[func._opname] += max((t.nbytes for t in tensors), default=0)
        return func(*args, **(kwargs or {}))


def _live(model) -> int:
    """Bytes of parameters that are whole now, or on their way, without the persistent ones."""
    partitioned = [p for p in model.parameters() if hasattr(p, "ds_status") and not p.ds_persist]
    return sum(p.ds_numel * p.element_size() for p in partitioned if p.ds_status.name != "NOT_AVAILABLE")


def _let_go(parameter) -> None:
    """Frees all that this rank holds of it."""
    for held in (parameter, getattr(parameter, "ds_tensor", None), getattr(parameter, "ds_secondary_tensor", None)):
        if held is not None:
            held.data = torch.empty(0, dtype=held.dtype)


def _resident() -> int:
    """Of this process, once what is free has gone back to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_info().rss


def _storages() -> int:
    """Bytes of all tensors that Python can see, each storage once."""
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
