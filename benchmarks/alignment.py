"""What P-Former's alignment costs: a step of the stages `align` and `generate` with it and without, in turn on the same
pairs, in one process.

    python benchmarks/alignment.py --threads 1
    python benchmarks/alignment.py --count          FLOPs with a LLaMA of 7B or 13B, counted without memory

BERT-base, 32 prompts, CLIP ViT-L/14's features and a LLaMA of 106 M parameters, all with random values, in bf16 on one
rank. The features are given, so that no vision tower makes the alignment's share look small; so are the captions' class
vectors, as with method.stored_vectors. `--online` adds a contender whose P-Former reads the captions itself. Printed
are medians over the rounds, by the clock and in CPU seconds, and the median of the ratios inside a round.
"""

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from train_step_against import LANGUAGE
from transformers import LlamaConfig

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.partitioned import fill_randomly
from dsmemvp.backbones.shapes import LANGUAGE as SHAPES
from dsmemvp.backbones.shapes import language_config, vision_config
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.config.methods import method_settings
from dsmemvp.config.recipe import Recipe, Training, Vision
from dsmemvp.data.batch import Batch, Captions, Item
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.distributed.ranks import Ranks, join_ranks, leave_ranks
from dsmemvp.model import VisualLanguageModel, loss_sum
from dsmemvp.stages import stages_of
from dsmemvp.training.engine import Trainer, build_trainer

STAGES = ("align", "generate")
GOALS = {"align": 1.05, "generate": 1.03}
TEXT_LENGTH, CAPTION, MASK = 32, range(10, 25), 103
"""Tokens of a row, of a caption (from and below), and BERT's [MASK]."""
Pair = tuple[Batch, torch.Tensor]
"""A batch without class vectors, and these."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8, help="of a step (default: 8)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--online", action="store_true", help="also with P-Former's whole encoder in every step")
    parser.add_argument("--small", action="store_true", help="tiny models, to see that it runs")
    parser.add_argument("--count", action="store_true", help="count the FLOPs of both ways, and measure nothing")
    given = parser.parse_args()
    if given.count:
        print_counts(given.pairs)
        return
    torch.set_num_threads(given.threads)
    ranks = join_ranks(seconds=1800)
    names = ["without", "with", *(["online"] if given.online else [])]
    print(f"{given.pairs} pairs, {given.rounds} rounds, {given.threads} threads\n")
    print("| stage | alignment | seconds | ratio | CPU seconds | ratio | at most |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for stage in STAGES:
        made = {name: trainer(stage, name != "without", given, ranks) for name in names}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for number in range(given.rounds + 1):
            pairs = drawn(made["without"].model, given.pairs, number)
            for name in names if number % 2 else reversed(names):
                found[name].append(timed(made[name], pairs, stored=name == "with"))
        for name, rows in found.items():
            print(line(stage, name, rows[1:], found["without"][1:]), flush=True)
        del made
    leave_ranks()


def line(stage: str, name: str, own: list[tuple[float, float]], first: list[tuple[float, float]]) -> str:
    cells = [stage, name]
    for which in (0, 1):
        ratios = [a[which] / b[which] for a, b in zip(own, first, strict=True)]
        cells += [f"{statistics.median(row[which] for row in own):.3f}", f"{statistics.median(ratios):.3f}"]
    return f"| {' | '.join(cells)} | {'' if name != 'with' else f'{GOALS[stage]:.2f}'} |"


def trainer(stage: str, aligned: bool, given: argparse.Namespace, ranks: Ranks) -> Trainer:
    recipe = recipe_of(aligned, given.pairs, "bert-tiny" if given.small else "bert-base")
    sizes = LANGUAGE | ({"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2} if given.small else {})
    configs = Configs(LlamaConfig(**sizes), vision_config("clip-tiny" if given.small else "clip-vit-l-14"))
    chosen = next(each for each in stages_of(recipe, configs) if each.name == stage)
    made = build_trainer(recipe, configs, ranks, load=fill_randomly, stage=chosen)
    if made.model.teacher is not None:
        prefix, module = made.model.teacher
        made.teach({f"{prefix}{name}": p.detach().clone() for name, p in module.named_parameters()})
    return made


def recipe_of(aligned: bool, pairs: int, text_shape: str) -> Recipe:
    recipe = Recipe(
        name="alignment",
        vision=Vision(adapter_dim=0, cache_features="features", statistics="clip"),
        method=method_settings(
            "pformer",
            stages=list(STAGES),
            text_shape=text_shape,
            text_length=TEXT_LENGTH,
            **({} if aligned else {"align_weight": 0.0, "generate_weight": 0.0}),
        ),
        training=Training(global_batch=pairs, micro_batch=pairs, deepspeed="ds_configs/replicated.json"),
    )
    recipe.model.dtype = "bf16"
    return recipe


def print_counts(pairs: int) -> None:
    print("| language model | stage | TFLOP without | with | ratio | at most |\n|---|---|---:|---:|---:|---:|")
    for shape in ("llama-7b", "llama-13b"):
        for stage in STAGES:
            without, own = (counted_flops(shape, stage, aligned, pairs) / 1e12 for aligned in (False, True))
            print(f"| {shape} | {stage} | {without:.3f} | {own:.3f} | {own / without:.4f} | {GOALS[stage]:.2f} |")


def counted_flops(shape: str, stage: str, aligned: bool, pairs: int) -> int:
    """Of the matrix products of forward and backward, on tensors without values."""
    recipe = recipe_of(aligned, pairs, "bert-base")
    configs = Configs(language_config(shape), vision_config("clip-vit-l-14"))
    chosen = next(each for each in stages_of(recipe, configs) if each.name == stage)
    with torch.device("meta"):
        model = build_frozen(recipe, configs, chosen)
        add_trainables(model, recipe, configs, chosen)
    if model.teacher is not None:
        model.method.begin_stage(chosen, model.teacher.module.requires_grad_(False).eval())
    batch, vectors_BH = drawn(model, pairs, 0)
    assert batch.captions is not None
    batch = replace(batch, images=batch.images.float(), captions=replace(batch.captions, vectors_BH=vectors_BH))
    batch = batch.to(torch.device("meta"))
    with FlopCounterMode(display=False) as counter:
        logits_SV, losses = model(batch)
        loss = sum(losses[name] * weight for name, weight in chosen.losses.items() if weight)
        if chosen.decoder:
            loss = loss + loss_sum(logits_SV, batch.targets)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
    return counter.get_total_flops()


def drawn(model: VisualLanguageModel, pairs: int, seed: int) -> Pair:
    """Random pictures' features, captions in both tokenizers, and their class vectors."""
    generator = torch.Generator().manual_seed(seed)
    method: Any = model.method
    bert = SHAPES[method.settings.text_shape].get("vocab_size", 30522)
    lengths = torch.randint(CAPTION.start, CAPTION.stop, (pairs,), generator=generator).tolist()
    items = []
    for b, length in enumerate(lengths):
        tokens = torch.randint(3, LANGUAGE["vocab_size"], (length,), generator=generator).tolist()
        items.append(Item(b, EncodedText([1, *tokens, 2], 1, False), torch.zeros(3, 1, 1, dtype=torch.uint8)))
    batch = make_batch(items, 1, method.reserved()).batch
    assert model.cached is not None
    features = torch.randn(pairs, *model.cached.shape, generator=generator).bfloat16()
    tokens_BL = torch.randint(104 if bert > 1000 else 5, bert, (pairs, TEXT_LENGTH), generator=generator)
    mask_BL = torch.arange(TEXT_LENGTH) < torch.tensor(lengths)[:, None]
    captions = Captions(tokens_BL, mask_BL, torch.zeros_like(mask_BL), tuple(lengths), MASK)
    vectors_BH = torch.randn(pairs, method.qformer.queries.shape[-1], generator=generator)
    numbers, rows = torch.arange(pairs), tuple(range(pairs))
    batch = replace(batch, images=features, image_of=numbers, image_ids=numbers, image_rows=rows)
    return replace(batch, captions=captions), vectors_BH


def timed(trainer: Trainer, pairs: Pair, stored: bool) -> tuple[float, float]:
    """A step's seconds, by the clock and of all threads."""
    batch, vectors_BH = pairs
    assert batch.captions is not None
    if stored:
        batch = replace(batch, captions=replace(batch.captions, vectors_BH=vectors_BH))
    stage, counts = trainer.stage, trainer.model.method.loss_counts(batch)
    own: dict[str, float | None] = {name: weight / counts[name] for name, weight in stage.losses.items() if weight}
    own |= dict.fromkeys(stage.measures)
    start, used = time.perf_counter(), time.process_time()
    trainer.accumulate([batch], 1 / batch.targets.numel(), auxiliary=own)
    trainer.update(1e-5)
    return time.perf_counter() - start, time.process_time() - used


if __name__ == "__main__":
    main()
