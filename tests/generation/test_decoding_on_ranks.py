"""Decoding with weights cut over two ranks, whose prompts differ in number and length: the tokens of one process."""

import json
from pathlib import Path

import pytest
import small
import torch
from launch import run_on_ranks, written
from programs import decoding
from safetensors.torch import save_file

from dsmemvp.backbones.weights import read_configs
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.checkpoints.checkpoint import Checkpoint
from dsmemvp.config.reading import read_recipe
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.generation.decoder import build_decoder
from dsmemvp.generation.generate import Sampling, generate
from dsmemvp.training.inference import open_for_inference

PROGRAM = Path(__file__).parent.parent / "programs" / "decoding.py"


def in_one_process(recipe_path, settings, method, trained):
    own = decoding.SETTINGS.get(method, ())
    recipe = read_recipe(recipe_path, [f"method.name={method}", *own, f"training.deepspeed={settings}"])
    configs = read_configs(recipe)
    with torch.device("meta"):
        model = build_frozen(recipe, configs)
    add_trainables(model, recipe, configs)
    generator = torch.Generator().manual_seed(0)
    values = {n: 0.03 * torch.randn(p.shape, generator=generator) for n, p in model.trainables().items()}
    save_file(values, trained)
    ranks = Ranks(0, 1, torch.device("cpu"))
    opened = open_for_inference(recipe, ranks, Checkpoint(trained))
    model, forward = opened.model, opened.forward
    prompts = decoding.prompts((0, 1, 2, 3), configs.resolution, model.method.reserved())
    return generate(build_decoder(model, forward, ranks, small.EOS), prompts, Sampling(5), decoding.done)


@pytest.mark.ranks
def test_two_ranks_of_zero3_say_what_one_process_says(recipe_path, repository, tmp_path):
    wanted = {
        method: in_one_process(
            recipe_path, repository / "ds_configs" / "replicated.json", method, tmp_path / f"{method}.safetensors"
        )
        for method in decoding.ROUNDS
    }
    settings = json.loads((repository / "ds_configs" / "zero3.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "zero3.json").write_text(json.dumps(settings))
    out = tmp_path / "said.json"
    run_on_ranks(PROGRAM, 2, str(recipe_path), str(tmp_path), str(tmp_path / "zero3.json"), str(out))
    said = written(out)
    for method, answers in wanted.items():
        assert said[f"{method}, in step"]
        assert len({tuple(tokens) for tokens in answers}) == 4 and len({len(tokens) for tokens in answers}) > 1
        for number in range(len(decoding.ROUNDS[method])):
            assert said[f"{method}, round {number}"] == [[i, tokens] for i, tokens in enumerate(answers)]
