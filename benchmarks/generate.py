"""Answers per second of memvp beside input_space, on the same base, images and questions.

    python benchmarks/generate.py --shape tiny          two CPU cores
    python benchmarks/generate.py --shape 7b            one CUDA GPU, random weights

Prints a Markdown table: one and eight questions about each image, answers of 1 and of 32 tokens, decoded greedily with
a key/value cache by the code behind `dsmemvp generate`; the vision tower is part of it, reading and decoding images are
not. No answer ends early. Each method runs in processes of its own, in turn, and the better of its rounds counts.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.partitioned import fill_randomly
from dsmemvp.backbones.weights import configs_of_shapes
from dsmemvp.config.methods import method_settings
from dsmemvp.config.recipe import Model, Recipe
from dsmemvp.data.batch import Item, MicroBatch
from dsmemvp.data.layout import Reserved
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.generation.decoder import build_decoder
from dsmemvp.generation.generate import Sampling, generate

METHODS = ("memvp", "input_space")


@dataclass(frozen=True)
class Shape:
    language: str
    vision: str
    slots: int


SHAPES = {
    "tiny": Shape("llama-tiny", "clip-tiny", slots=80),
    "7b": Shape("llama-7b", "clip-vit-l-14", slots=320),
    "13b": Shape("llama-13b", "clip-vit-l-14", slots=400),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--batch", type=int, default=16, help="answers at a time")
    parser.add_argument("--tokens", type=int, default=32, help="mean tokens of a question; VQAv2's have about as many")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 32], help="tokens of an answer")
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 8], help="questions about an image")
    parser.add_argument("--batches", type=int, default=8, help="timed batches of each kind")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=METHODS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.only, given)))
        return
    rounds = [{m: _in_own_process(m) for m in METHODS} for _ in range(given.rounds)]
    best = {m: {k: max(r[m]["rates"][k] for r in rounds) for k in rounds[0][m]["rates"]} for m in METHODS}
    print(f"shape {given.shape}, {rounds[0]['memvp']['about']}, {given.batch} answers at a time")
    print("| questions per image | tokens per answer | memvp, answers/s | input_space, answers/s | ratio |")
    print("|---:|---:|---:|---:|---:|")
    for key, rate in best["memvp"].items():
        other = best["input_space"][key]
        print(f"| {key.replace(' ', ' | ')} | {rate:.2f} | {other:.2f} | {rate / other:.2f} |")
    for method in METHODS:
        found = rounds[0][method]
        print(f"{method}: {found['places']:.0f} places per prompt, peak memory {found['memory']:.2f} GiB")


def _in_own_process(method: str) -> dict:
    command = [sys.executable, __file__, *sys.argv[1:], "--only", method]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(method, given: argparse.Namespace) -> dict:
    from dsmemvp.distributed.ranks import Ranks, own_device
    from dsmemvp.dtypes import NAMED
    from dsmemvp.training.model_loading import WHOLE, build_model
    from dsmemvp.training.monitor import peak_memory

    shape, ranks = SHAPES[given.shape], Ranks(0, 1, own_device())
    slots = {"slots": shape.slots} if method == "memvp" else {}
    recipe = Recipe("benchmark", method=method_settings(method, **slots))
    recipe.model = Model(language_shape=shape.language, vision_shape=shape.vision)
    configs = configs_of_shapes(recipe)
    model = build_model(recipe, configs, WHOLE, ranks, load=fill_randomly)
    model = model.to(ranks.device, NAMED[recipe.model.dtype]).eval()
    beyond = configs.language.vocab_size  # an EOS that no logit belongs to: no answer ends early
    decoder = build_decoder(model, lambda *batch: model(*batch), ranks, beyond)
    rates, places = {}, []
    for questions in given.questions:
        batches = _batches(configs, model.method.reserved(), questions, given)
        places += [sum(prompts.batch.lengths) for prompts in batches]
        for length in given.lengths:
            sampling = Sampling(length)
            generate(decoder, batches[0], sampling)  # allocates
            _settle(ranks.device)
            start = time.perf_counter()
            for prompts in batches:
                generate(decoder, prompts, sampling)
            _settle(ranks.device)
            rates[f"{questions} {length}"] = given.batch * len(batches) / (time.perf_counter() - start)
    where = torch.cuda.get_device_name() if ranks.device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return {
        "rates": rates,
        "places": sum(places) / len(places) / given.batch,
        "memory": peak_memory(ranks.device),
        "about": f"{where}, {recipe.model.dtype}",
    }


def _batches(
    configs: Configs, reserved: Sequence[Reserved], questions: int, given: argparse.Namespace
) -> list[MicroBatch]:
    """Random tokens and pixels, the same for every method."""
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    side, batches = configs.resolution, []
    for _ in range(given.batches):
        items = []
        for index in range(given.batch):
            if index % questions == 0:
                image = torch.randint(256, (3, side, side), dtype=torch.uint8, generator=generator)
            length = rng.randint(given.tokens * 5 // 8, given.tokens * 11 // 8)
            tokens = [rng.randrange(3, configs.language.vocab_size) for _ in range(length)]
            items.append(Item(index, EncodedText(tokens, length, False, cue=1), image))
        batches.append(make_batch(items, side, reserved, last_only=True))
    return batches


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
