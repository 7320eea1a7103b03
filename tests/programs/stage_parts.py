"""On every rank: a trainer goes from a stage with a language model to one without, and back. Argument: a recipe of the
toy method with its three stages. Says what stays of the model before, and what a teacher and a vocabulary are."""

import gc
import os
import sys
import weakref
from pathlib import Path

import torch
from safetensors.torch import load_file

import dsmemvp.prompts
from dsmemvp.backbones.weights import Base
from dsmemvp.config.reading import read_recipe
from dsmemvp.distributed.ranks import join_ranks, leave_ranks
from dsmemvp.distributed.stopping import Stop
from dsmemvp.stages import stages_of
from dsmemvp.training.engine import build_trainer

dsmemvp.prompts.__path__.append(str(Path(__file__).parent / "methods"))


def main(path: str) -> None:
    ranks = join_ranks(seconds=600, stop=Stop())
    recipe = read_recipe(path)
    base = Base(recipe)
    words, match, write = stages_of(recipe, base.configs)
    trainer = build_trainer(recipe, base.configs, ranks, stage=words)
    vocabulary_Vd = trainer.model.method.given[1]
    weights = load_file(Path(recipe.model.language_model) / "model.safetensors")
    assert torch.equal(vocabulary_Vd, weights["model.embed_tokens.weight"]), "the vocabulary is not the base's"
    assert set(trainer.trainables) == {"method.first.weight", "method.first.bias"}
    first = trainer.values()
    before = [weakref.ref(trainer.model), weakref.ref(trainer.model.language), weakref.ref(trainer.engine)]
    before += [weakref.ref(p) for p in trainer.model.parameters()]

    trainer.build(recipe, match)
    gc.collect()
    left = [reference() for reference in before if reference() is not None]
    assert not left, f"{len(left)} of {len(before)} are left: {type(left[0])}"
    assert trainer.model.language is None and trainer.model.method.first is None
    assert set(trainer.trainables) == {"method.second.weight", "method.second.bias"}
    assert set(trainer.teacher_shapes()) == set(first)
    changed = {name: value + 1 for name, value in first.items()}
    trainer.teach(changed)
    teacher, _ = trainer.model.method.given
    assert torch.equal(teacher.weight, changed["method.first.weight"]) and not teacher.weight.requires_grad
    assert not any("first" in name for name in trainer.model.state_dict())
    initial = trainer.values()

    trainer.build(recipe, write)
    assert trainer.model.language is not None and trainer.model.teacher is None
    assert all(torch.equal(value, initial[name]) for name, value in trainer.values().items())
    if ranks.first:
        print("as wanted", flush=True)
    leave_ranks()
    os._exit(0)


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
